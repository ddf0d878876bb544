"""Units, options, TOML, profiles and their precedence. Runs in about 3 s."""

from __future__ import annotations

import fnmatch
import math
import re
from dataclasses import fields, replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vitrail
from vitrail import units
from vitrail.catalog import candidates
from vitrail.cli import main
from vitrail.errors import InputError
from vitrail.export.variants import variants
from vitrail.replay import judge_recorded
from vitrail.requirements import OPTIONS, PROFILES, check, from_toml, resolve
from vitrail.verify import verify
from vitrail.vocabulary import Requirements, SearchSettings, Workload

# --- units --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("50ms", 50.0),
        ("0.05s", 50.0),
        ("0.1s", 100.0),
        ("5m", 300_000.0),
        ("1.5min", 90_000.0),
        ("2h", 7_200_000.0),
        ("250us", 0.25),
        ("250µs", 0.25),
        (" 50 ms ", 50.0),
        ("+1e2ms", 100.0),
        (".5s", 500.0),
    ],
)
def test_durations(text, ms):
    assert units.duration_ms(text) == ms


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("1GiB", 1024.0),
        ("512MiB", 512.0),
        ("1.5GB", 1_500_000_000 / 2**20),
        ("1gib", 1024.0),
        ("2048KiB", 2.0),
        ("1TiB", 2.0**20),
        ("1048576B", 1.0),
        ("0", 0.0),
        (0, 0.0),
    ],
)
def test_sizes(text, mib):
    assert units.size_mib(text) == mib


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.percent, "80", 80.0),
        (units.percent, "80%", 80.0),
        (units.percent, 80, 80.0),
        (units.percent, "0.8%", 0.8),
        (units.throughput, "20", 20.0),
        (units.throughput, "20/s", 20.0),
        (units.throughput, "20 images/s", 20.0),
        (units.throughput, "1200/min", 20.0),
        (units.count, "8", 8),
        (units.count, 8, 8),
    ],
)
def test_percent_throughput_count(parse, text, value):
    assert parse(text) == value


@given(
    st.decimals(min_value="0.000001", max_value=10**6, places=6), st.sampled_from(["us", "ms", "s", "m", "h"])
)
def test_a_duration_is_the_float_nearest_to_the_exact_value(number, unit):
    exact = (
        Fraction(number) * {"us": Fraction(1, 1000), "ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}[unit]
    )
    assert units.duration_ms(f"{number:f}{unit}") == float(exact)


@given(
    st.text(max_size=12) | st.floats() | st.integers() | st.booleans() | st.none() | st.lists(st.integers())
)
def test_any_value_is_parsed_to_a_finite_number_or_refused_in_one_line(value):
    for parse in (units.duration_ms, units.size_mib, units.percent, units.throughput, units.count):
        try:
            number = parse(value, "here")
        except InputError as error:
            assert str(error).startswith("here: ")  # noqa: PT017
        else:
            assert math.isfinite(number)


@pytest.mark.parametrize(
    ("option", "text", "fix"),
    [
        ("max-latency", "50", "write 50ms"),
        ("max-latency", 50, "write 50ms"),
        ("max-latency", "50sec", "use us, µs, ms, s, m, min, h"),
        ("max-latency", "-5ms", "not above 0"),
        ("max-latency", "0ms", "not above 0"),
        ("max-latency", "nan", "write for example 50ms"),
        ("max-latency", "infs", "write for example 50ms"),
        ("max-latency", "1e999999999999ms", "too large"),
        ("max-latency", "1e-9999ms", "not above 0"),
        ("max-latency", True, "write for example 50ms"),
        ("max-memory", "512", "write 512MiB"),
        ("max-memory", "512M", "use B, kB"),
        ("max-memory", "0", "not above 0"),
        ("min-accuracy", "101", "is above 100"),
        ("min-accuracy", "0.8", "write 80 for 80 %"),
        ("min-accuracy", "0", "not above 1"),
        ("min-accuracy", float("nan"), "write for example 80"),
        ("percentile", "49", "is below 50"),
        ("percentile", "100", "is above 99.9"),
        ("min-throughput", "-1", "not above 0"),
        ("min-throughput", "20/h", "use /s, images/s, /min"),
        ("batch-size", "0", "is below 1"),
        ("batch-size", "1.5", "write 2"),
        ("batch-size", True, "write for example 8"),
        ("image-size", "8", "is below 32"),
        ("threads", "-2", "is below 1"),
        ("device", "gpu0", "use cpu"),
        ("objective", "latencyy", "Did you mean latency?"),
        ("latency-scope", "requests", "Did you mean request?"),
        ("budget", "5", "write 5m or 5s"),
        ("budget", "0s", "not above 0"),
        ("max-download", "-1GB", "is below 0"),
        ("models", [], "at least one"),
        ("models", "a,,b", "at least one"),
        ("license", ["any", "mit"], "drop the others"),
        ("images", "", "give a folder"),
        ("offline", "yes", "write true or false"),
    ],
)
def test_bad_values_are_refused_with_the_place_and_the_fix(option, text, fix):
    with pytest.raises(InputError, match=re.escape(fix)) as caught:
        resolve(flags={option: text})
    assert str(caught.value).startswith(f"--{option}: ")
    assert "\n" not in str(caught.value)


# --- the table of options -----------------------------------------------------------------------


def test_every_field_of_the_three_records_is_an_option_and_nothing_else_is():
    fields_of = [(o.record, name) for o in OPTIONS.values() for name in (o.field, o.by_stage)]
    named = {(record, name) for record, name in fields_of if name is not None}
    real = {(r, f.name) for r in (Requirements, Workload, SearchSettings) for f in fields(r)}
    assert named == real


def test_help_tells_the_true_defaults():
    for option in OPTIONS.values():
        told = re.search(r"\(default (.+)\)", option.help)
        default = next(f.default for f in fields(option.record) if f.name == option.field)
        if told:
            assert option.parse(told[1], option.field) == default
        else:
            assert default in (None, False, ())


def test_no_sources_means_the_defaults():
    assert resolve() == (Requirements(), Workload(), SearchSettings())


def test_all_flags_reach_their_fields():
    requirements, workload, search = resolve(
        flags={
            "max-latency": "50ms",
            "min-accuracy": "80%",
            "max-memory": "1GiB",
            "min-throughput": "20",
            "license": ["mit,apache-2.0", "mit"],
            "objective": "memory",
            "batch-size": "8",
            "image-size": "256",
            "threads": "2",
            "device": "cpu",
            "latency-scope": "model",
            "percentile": "p99",
            "images": "photos",
            "models": ["swin_*"],
            "runtimes": ["openvino"],
            "precisions": ["fp32,bf16"],
            "budget": "90s",
            "max_download": "2GB",
            "fresh": True,
        },
        runtimes=("openvino", "onnxruntime"),
    )
    assert requirements == Requirements(
        max_latency_ms=50.0,
        min_accuracy=80.0,
        max_memory_mib=1024.0,
        min_throughput=20.0,
        license=("mit", "apache-2.0"),
        objective="memory",
    )
    assert workload == Workload(
        batch_size=8, image_size=256, threads=2, latency_scope="model", percentile=99.0, images="photos"
    )
    assert search == SearchSettings(
        models=("swin_*",),
        runtimes=("openvino",),
        precisions=("fp32", "bf16"),
        budget_s=90.0,
        max_download_mib=2e9 / 2**20,
        fresh=True,
    )


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"Unknown runtime 'openvine'.*Did you mean openvino\?"):
        resolve(flags={"runtimes": ["openvine"]}, runtimes=("openvino", "onnxruntime"))
    with pytest.raises(InputError, match=r"Unknown precision 'fp31'.*Did you mean fp32"):
        resolve(flags={"precisions": ["fp31"]})
    with pytest.raises(InputError, match=r"--max-latancy: unknown option\. Did you mean max-latency"):
        resolve(flags={"max-latancy": "5ms"})
    with pytest.raises(InputError, match=r"unknown name 'balance'.*Did you mean balanced\?"):
        resolve("balance")


# --- TOML ---------------------------------------------------------------------------------------


def test_toml_takes_both_spellings_and_numbers_or_text(tmp_path):
    path = tmp_path / "requirements.toml"
    path.write_text(
        'max-latency = "50ms"\nmin_accuracy = 80\nmodels = ["swin_*", "convnext_*"]\nlicense = "any"\n'
        'images = "photos"\noffline = true\n'
    )
    assert from_toml(path) == {
        "max-latency": 50.0,
        "min-accuracy": 80.0,
        "models": ("swin_*", "convnext_*"),
        "license": ("any",),
        "images": str(tmp_path / "photos"),
        "offline": True,
    }
    assert resolve(toml=path) == resolve(toml=from_toml(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('max-latencies = "50ms"', r"max-latencies in .*r\.toml: unknown option\. Did you mean max-latency"),
        ('[requirements]\nmax-latency = "50ms"', r"requirements in .*: unknown option"),
        ("max-latency = 50", r"max-latency in .*: 50 has no unit: write 50ms"),
        ("min-accuracy = nan", r"min-accuracy in .*'nan' is not a number"),
        ("min-throughput = inf", r"min-throughput in .*'inf' is not a number"),
        ('max-latency = "5ms"\nmax_latency = "6ms"', r"given twice"),
        ('\nmax-latency = "5ms', r"not valid TOML: .*line 2"),
        ("objective = ", r"not valid TOML: .*line 1"),
        ('models = ["a"', r"not valid TOML: .*line 1"),
        ('profile = "edgy"', r"Did you mean edge\?"),
        ("models = [1]", r"is not a list of names"),
        ("images = 3", r"give a folder"),
    ],
)
def test_bad_toml_is_one_sentence_that_names_the_place(tmp_path, text, message):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        from_toml(path)
    assert "\n" not in str(caught.value)


def test_a_toml_file_that_cannot_be_read_is_an_input_error(tmp_path):
    binary = tmp_path / "photo.toml"
    binary.write_bytes(b"\xff\xd8\xff\xe0")
    for path, message in [
        (tmp_path / "absent.toml", "No such file"),
        (tmp_path, "directory"),
        (binary, "not UTF-8 text"),
    ]:
        with pytest.raises(InputError, match=message):
            from_toml(path)


# --- precedence and contradictions --------------------------------------------------------------


def test_flags_over_toml_over_profile_over_defaults(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('profile = "edge"\nmax-latency = "70ms"\nmin-accuracy = 60\nbatch-size = 2\n')
    requirements, workload, _ = resolve(toml=path, flags={"min-accuracy": "65", "max-memory": None})
    assert requirements.min_accuracy == 65.0  # flag
    assert requirements.max_latency_ms == 70.0  # TOML
    assert requirements.max_memory_mib == 512.0  # profile
    assert (workload.batch_size, workload.threads) == (2, 1)  # TOML, profile
    assert workload.percentile == 95.0  # default
    assert resolve("speed-first", path)[0].objective == "latency"  # the flag's profile, not the file's
    assert resolve(toml=path, flags={"profile": "speed-first"}) == resolve("speed-first", path)


def test_offline_contradicts_a_download_allowance_unless_it_overrides_it(tmp_path):
    with pytest.raises(InputError, match="contradict"):
        resolve(flags={"offline": True, "max-download": "1GiB"})
    assert resolve(flags={"offline": True, "max-download": "0"})[2].offline
    assert not resolve(flags={"offline": False, "max-download": "1GiB"})[2].offline
    path = tmp_path / "r.toml"
    path.write_text('max-download = "1GiB"')
    assert resolve(toml=path, flags={"offline": True})[2].offline
    path.write_text("offline = true")
    with pytest.raises(InputError, match="contradict"):
        resolve(toml=path, flags={"max-download": "1GiB"})
    assert not resolve(toml=path, flags={"max-download": "1GiB", "offline": False})[2].offline


def test_limits_of_latency_and_throughput_never_contradict():
    # 100 images/s one at a time needs 10 ms each; a limit of 50 ms does not forbid that.
    requirements, _, _ = resolve(flags={"max-latency": "50ms", "min-throughput": "100"})
    assert (requirements.max_latency_ms, requirements.min_throughput) == (50.0, 100.0)


# --- records built in Python --------------------------------------------------------------------


def test_good_records_pass_the_check():
    check(
        Requirements(max_latency_ms=50, min_accuracy=80), Workload(batch_size=8), SearchSettings(budget_s=1)
    )


@pytest.mark.parametrize(
    "record",
    [
        Requirements(max_latency_ms=-1),
        Requirements(max_latency_ms=math.nan),
        Requirements(max_latency_ms="50ms"),  # type: ignore[arg-type]
        Requirements(min_accuracy=100.5),
        Requirements(objective="speed"),  # type: ignore[arg-type]
        Requirements(license=("any", "mit")),
        Requirements(license=()),
        Workload(batch_size=0),
        Workload(batch_size=1.0),  # type: ignore[arg-type]
        Workload(batch_size=None),  # type: ignore[arg-type]
        Workload(percentile=100),
        Workload(threads=True),
        Workload(device="gpu"),
        SearchSettings(budget_s=math.inf),
        SearchSettings(runtimes=("openvine",)),
        SearchSettings(precisions=("fp8",)),
        SearchSettings(models=["swin_*"]),  # type: ignore[arg-type]
        SearchSettings(offline=True, max_download_mib=5),
    ],
)
def test_bad_records_do_not(record):
    with pytest.raises(InputError):
        check(record, runtimes=("openvino",))


# --- profiles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_resolve_and_their_globs_match_the_catalog(name):
    assert PROFILES[name].name == name
    _, _, search = resolve(name)
    for glob in search.models:
        assert any(fnmatch.fnmatch(candidate.name, glob) for candidate in candidates()), glob


@pytest.mark.parametrize("name", PROFILES)
def test_flags_override_every_setting_of_a_profile(name):
    plain = {"models": ["x*"], "objective": "memory", "batch-size": "3", "budget": "7s", "max-latency": "1s"}
    plain |= {"min-accuracy": "50", "threads": "2", "max-memory": "9GiB"}
    assert set(PROFILES[name].settings) <= set(plain)
    assert resolve(name, flags=plain) == resolve(flags=plain)


def test_settings_of_a_profile_change_what_is_asked():
    requirements, workload, _ = resolve("edge")
    assert requirements == replace(Requirements(), max_latency_ms=100.0, max_memory_mib=512.0)
    assert workload == Workload(threads=1)


def test_recalls_of_classes():
    asked, _, _ = resolve(flags={"min-recall": ["defect=95", "a=b=50%"]})
    assert asked.min_recall == (("defect", 95.0), ("a=b", 50.0))
    check(asked)


@pytest.mark.parametrize(
    "value", [3, [3], ["a=50", 3], [[]], [{}], ["=5"], ["a"], ["a=150"], ["a=5", "a=6"], ["a=x"]]
)
def test_what_is_no_recall_is_one_sentence(value, tmp_path):
    with pytest.raises(InputError, match="min-recall"):
        resolve(flags={"min-recall": value})


def test_a_recall_in_a_file(tmp_path):
    (tmp_path / "r.toml").write_text('min-recall = ["defect=95"]\ndata = "labelled"\n')
    asked, workload, _ = resolve(toml=tmp_path / "r.toml")
    assert asked.min_recall == (("defect", 95.0),)
    assert workload.data == str(tmp_path / "labelled")


@pytest.mark.parametrize("value", ["5", '""', '["a"]', "true"])
@pytest.mark.parametrize(
    ("key", "takes"), [("data", "your labelled images, a folder per"), ("images", "a folder of")]
)
def test_what_is_no_path_says_what_the_option_takes(tmp_path, key, takes, value):
    (tmp_path / "r.toml").write_text(f"{key} = {value}\n")
    with pytest.raises(InputError) as error:
        resolve(toml=tmp_path / "r.toml")
    assert str(error.value).startswith(f"{key} in {tmp_path / 'r.toml'}: ")
    assert f"is not a path: give {takes}" in str(error.value)


@pytest.mark.parametrize(
    "record",
    [
        Requirements(min_accuracy=0.74),
        Requirements(min_accuracy=1.0),
        Requirements(min_recall=(("cat", 0.9),)),
        Workload(percentile=0.95),
    ],
    ids=str,
)
def test_a_fraction_is_refused_in_python_as_it_is_where_it_is_typed(record):
    with pytest.raises(InputError, match=r"may be a fraction: write (74|100|90|95)"):
        check(record)


def test_a_fraction_is_refused_wherever_requirements_are_given_in_python(tmp_path):
    asked = Requirements(min_accuracy=0.74)
    for use in (
        lambda: judge_recorded(tmp_path / "x.json", asked, Workload(), SearchSettings()),
        lambda: verify(tmp_path / "x", requirements=asked),
        lambda: vitrail.select(asked),
    ):
        with pytest.raises(InputError, match=r"min_accuracy: 0.74 may be a fraction: write 74 for 74 %"):
            use()


@pytest.mark.parametrize(
    "arguments",
    [
        ["models", "--min-accuracy", "0.8"],
        ["select", "--min-accuracy", "0.8"],
        ["select", "--weights", "w.safetensors", "--arch", "a", "--labels", "l", "--accuracy", "0.8"],
        ["select", "--min-recall", "cat=0.8"],
    ],
    ids=" ".join,
)
def test_every_percentage_of_the_command_line_refuses_a_fraction(arguments, capsys):
    assert main(arguments) == 2
    assert "0.8 may be a fraction: write 80 for 80 %" in capsys.readouterr().err


def test_a_precision_that_nobody_offers_is_answered_with_those_there_are():
    pytest.importorskip("openvino")
    with pytest.raises(InputError, match=r"offers int8: .*openvino has fp32, bf16"):
        variants((), Workload(), SearchSettings(precisions=("int8",)))
