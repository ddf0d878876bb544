"""The shell of the command line: table of commands, exit codes, messages, frozen surface. About 5 s."""

from __future__ import annotations

import errno
import importlib.util
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from cli_surface import FROZEN, surface

import vitrail
from vitrail import cli, hardware
from vitrail.errors import ClaimError, InputError
from vitrail.install import here
from vitrail.requirements import OPTIONS, PROFILES, resolve
from vitrail.runtimes import RUNTIMES

WORKBENCH = 'pip install "vitrail[workbench]"'

HEAVY = ("numpy", "torch", "openvino", "onnxruntime", "rich", "jinja2", "PIL", "psutil", "msgspec", "timm")


def vitrail_process(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitrail", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def command(monkeypatch):
    """Make `vitrail probe` a command that does what the test wants."""

    def make(run, add_arguments=lambda parser: None):
        module = types.ModuleType("probe_command")
        module.run, module.add_arguments = run, add_arguments
        monkeypatch.setitem(sys.modules, "probe_command", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", ("probe_command", "a test's command"))

    return make


# --- surface ------------------------------------------------------------------------------------


def test_the_surface_is_the_frozen_one():
    assert surface() == FROZEN.read_text(encoding="utf-8"), "run `make cli-surface` and read the difference"


def test_no_command_takes_abbreviations():
    for name, (module, _) in cli.COMMANDS.items():
        if importlib.util.find_spec(module) is not None:
            assert not cli.command_parser(name).allow_abbrev, name


def test_every_command_is_in_the_help_and_has_its_own(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (_, help_line) in cli.COMMANDS.items():
        assert name in text
        assert help_line in text
    assert cli.main(["doctor", "--help"]) == 0
    assert "usage: vitrail doctor" in capsys.readouterr().out


def test_help_imports_no_command_and_nothing_heavy():
    program = (
        "import sys; from vitrail.cli import main; main(['--help']);"
        f"print([m for m in sys.modules if m in {HEAVY} or m.startswith('vitrail.cli.')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_version_and_python_dash_m():
    done = vitrail_process("--version")
    assert (done.returncode, done.stdout) == (0, f"vitrail {vitrail.__version__}\n")


# --- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["slect"], "Did you mean select?"),
        (["doctor", "--peak"], "unrecognized arguments: --peak"),  # no abbreviations
        (["doctor", "--json"], "expected one argument"),
        (["profiles", "extra"], "unrecognized arguments: extra"),
        (["--verbose"], "unrecognized arguments: --verbose"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vitrail: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_no_command_shows_the_help_on_stderr(capsys):
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "commands:" in err


# --- what a command may end with ----------------------------------------------------------------


def raising(error):
    def run(args):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("Wrong\nthing."), 2, "error: Wrong\\nthing."),
        (ClaimError("It is slower."), 3, "error: It is slower."),
        (KeyboardInterrupt(), 130, "interrupted."),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            2,
            "error: /x: Permission denied: choose a",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: output: No space left on device: free"),
        (ModuleNotFoundError("no torch", name="torch"), 2, f"run `{here(WORKBENCH)}`."),
    ],
)
def test_errors_for_the_user_are_one_line_with_their_exit_code(command, capsys, error, code, line):
    command(raising(error))
    assert cli.main(["probe"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vitrail: ")
    assert line in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("bug"), OSError(errno.EIO, "bug"), BrokenPipeError("a child's")]
)
def test_errors_that_are_ours_keep_their_traceback(command, error):
    command(raising(error))
    with pytest.raises(type(error)):
        cli.main(["probe"])


def test_the_exit_code_is_the_commands(command):
    command(lambda args: 1)
    assert cli.main(["probe"]) == 1


def test_a_negative_value_reaches_the_command_that_explains_it(command):
    def run(args):
        resolve(flags={"max-latency": args.max_latency})
        return 0

    command(run, lambda parser: parser.add_argument("--max-latency"))
    assert cli.main(["probe", "--max-latency", "-5ms"]) == 2
    assert cli.main(["probe", "--max-latency", "5ms"]) == 0


def test_a_reader_that_leaves_is_no_error():
    program = (
        "import sys\nfrom vitrail.cli import COMMANDS, main\nimport types\n"
        "module = types.ModuleType('probe'); module.add_arguments = lambda parser: None\n"
        "def run(args):\n    for i in range(100000): print(i)\n    return 0\n"
        "module.run = run; sys.modules['probe'] = module; COMMANDS['probe'] = ('probe', 'x')\n"
        "sys.exit(main(['probe']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=30) == 141


# --- profiles and doctor ------------------------------------------------------------------------


def test_profiles_as_text_and_json(capsys, tmp_path):
    assert cli.main(["profiles"]) == 0
    text = capsys.readouterr().out
    for profile in PROFILES.values():
        assert profile.recommendation in text
        assert profile.trade_off in text
    target = tmp_path / "profiles.json"
    assert cli.main(["profiles", "--json", str(target)]) == 0
    assert cli.main(["profiles", "--json", "-"]) == 0
    alone = capsys.readouterr().out.removeprefix(text)
    assert json.loads(alone) == json.loads(target.read_text())
    written = json.loads(alone)["profiles"]
    assert [profile["name"] for profile in written] == list(PROFILES)
    assert all(set(profile["settings"]) <= set(OPTIONS) for profile in written)


def test_doctor_tells_this_machines_facts(capsys):
    assert cli.main(["doctor", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fingerprint"] == hardware.fingerprint(hardware.facts())
    assert document["hardware"]["cpu"]["usable_cores"] == hardware.usable_cores()
    assert document["peaks_gflops"] is None
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(document["summary"] + "\n")
    for name, engine in document["hardware"]["engines"].items():
        assert f"{engine['label']}" in text
        if engine["version"] or "cpu" in RUNTIMES[name].devices:  # others: where a GPU is seen
            assert (engine["version"] or here(engine["install"])) in text


def test_doctor_names_what_is_missing_and_its_install_line(monkeypatch, capsys):
    from importlib import metadata

    real = metadata.version

    def version(name):
        if name in ("torch", "timm", "onnxruntime"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"ONNX Runtime +not installed: {re.escape(here('pip install vitrail'))}", text)
    assert re.search(
        r"workbench: making new artifacts with `vitrail select` \((timm, torch|torch, timm)\)", text
    )
    assert here(WORKBENCH) in text
    assert "ONNX Runtime" not in text.splitlines()[0]


def test_doctor_knows_every_extra_and_names_its_packages(monkeypatch, capsys):
    """Whoever adds an extra to pyproject.toml says in `EXTRAS` what it is for."""
    from importlib import metadata

    from vitrail.cli.doctor import EXTRAS

    if sys.version_info < (3, 11):
        pytest.skip("reads pyproject.toml with tomllib")
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - {"dev"}
    asked = [f'{need}; extra == "{extra}"' for extra, needs in extras.items() for need in needs]
    real = metadata.version

    def version(name):
        if name in ("pyarrow", "usearch"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    monkeypatch.setattr(metadata, "version", version)
    assert cli.main(["doctor", "--json", "-"]) == 0
    missing = {item["what"]: item for item in json.loads(capsys.readouterr().out)["missing"]}
    assert missing["search"]["packages"] == ["pyarrow", "usearch"]
    assert missing["search"]["install"] == here('pip install "vitrail[search]"')
    assert missing["parquet"]["packages"] == ["pyarrow"]


def test_doctor_imports_no_engine():
    program = (
        "import sys; from vitrail.cli import main; main(['doctor']);"
        "print(sorted({'torch', 'openvino', 'onnxruntime', 'timm'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


# --- requirement options on a parser ------------------------------------------------------------


def test_requirement_options_reach_the_records_and_absent_ones_stay_absent(tmp_path, command):
    from vitrail.cli.requirement_options import add_requirement_arguments, flags_of, resolve_arguments

    seen = {}

    def run(args):
        seen.update(flags=flags_of(args), records=resolve_arguments(args, tmp_path / "r.toml"))
        return 0

    command(run, add_requirement_arguments)
    (tmp_path / "r.toml").write_text('max-latency = "70ms"\nbatch-size = 4\noffline = true\n')
    typed = ["--max-latency", "50ms", "--models", "a*", "b*", "--models", "c*", "--no-offline"]
    assert cli.main(["probe", *typed, "--profile", "edge"]) == 0
    assert seen["flags"] == {
        "max-latency": "50ms",
        "models": ["a*", "b*", "c*"],
        "offline": False,
        "profile": "edge",
    }
    requirements, workload, search = seen["records"]
    assert (requirements.max_latency_ms, requirements.max_memory_mib) == (50.0, 512.0)
    assert workload.batch_size == 4
    assert (search.models, search.offline) == (("a*", "b*", "c*"), False)


def test_the_docs_name_every_option_and_exit_code():
    text = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text(encoding="utf-8")
    for name in (*OPTIONS, *PROFILES, *cli.COMMANDS):
        assert f"`{name}`" in text or f"`--{name}`" in text or f"`vitrail {name}`" in text, name
    for code in ("0", "1", "2", "3", "130", "141"):
        assert f"| {code} |" in text


@pytest.mark.parametrize(
    "asked",
    [
        ["--weights", "my net.pth", "--arch", "resnet50", "--labels", "l.txt", "--accuracy", "81.25"],
        ["--trained", "runs/a", "--trained", "runs/b b"],
        ["--classes", "cat,dog", "--prompts", "simple", "--keep-text-tower", "--tag", "openai"],
        [],
    ],
)
def test_what_no_requirements_file_can_hold_is_recorded_as_options(asked):
    """The report's command must ask for the same candidates again."""
    import argparse

    from vitrail.cli import select

    parser = argparse.ArgumentParser()
    select.add_arguments(parser)
    args = parser.parse_args([*asked, "--out", "winner", "--max-latency", "50ms"])
    again = select.beside_requirements(args)
    bare = parser.parse_args([*again, "--out", "winner", "--max-latency", "50ms"])
    assert vars(bare) == vars(args)
    assert select.beside_requirements(parser.parse_args([])) == ()
