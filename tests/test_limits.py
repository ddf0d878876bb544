"""Numbers that a person, a program or a file gives have bounds, in every command and in the Python API."""

from __future__ import annotations

import argparse

import pytest
from artifacts import make_artifact

from vitrail import Requirements, SearchSettings, Workload, cli, predict
from vitrail.errors import InputError
from vitrail.limits import LARGEST_INPUT_BYTES, RANGES, input_bytes, whole
from vitrail.requirements import check, resolve

HUGE = 10**400
"""Beyond a float: it cannot be compared with one, and Python refuses to print much more."""

NOT_COUNTED = {"--seed", "--per-class"}
"""No amount; and one that data/sheet.py bounds by what a sheet can hold."""


def whole_numbers() -> list[tuple[str, str]]:
    """(command, option) of every option that takes a whole number by itself."""
    found = []
    for name in cli.COMMANDS:
        for action in cli.command_parser(name)._actions:
            if getattr(action.type, "__qualname__", "").startswith("whole_number"):
                found.append((name, action.option_strings[0]))
    return found


def test_no_option_takes_a_number_without_bounds():
    for name in cli.COMMANDS:
        for action in cli.command_parser(name)._actions:
            if action.type is int:
                assert set(action.option_strings) <= NOT_COUNTED, f"{name} {action.option_strings}"


@pytest.mark.parametrize(("name", "option"), whole_numbers())
@pytest.mark.parametrize("text", ["-1", "1000000000000", str(HUGE), "1e3", "nan", "", "9" * 5000])
def test_every_whole_number_is_refused_out_of_its_range(name, option, text):
    action = next(a for a in cli.command_parser(name)._actions if option in a.option_strings)
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a whole number from \d+ to \d+"):
        action.type(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["select", "--threads", "100000"],
        ["select", "--batch-size", "1e30"],
        ["select", "--image-size", "1000000"],
        ["select", "--budget", "1e300h"],
        ["select", "--max-memory", "1e300GiB"],
        ["select", "--max-latency", "1e200h"],
        ["predict", "winner", "cat.jpg", "--threads", "100000"],
        ["verify", "winner", "--threads", "100000"],
        ["train", "--data", "d", "--model", "m", "--out", "o", "--set", "epochs=10000000000"],
    ],
)
def test_absurd_numbers_end_at_once_with_one_sentence(arguments, capsys):
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "is above" in err or "from 1 to" in err or "too large" in err


@pytest.mark.parametrize(
    "record",
    [
        Workload(threads=100_000),
        Workload(batch_size=HUGE),
        Workload(image_size=10**6),
        Requirements(max_latency_ms=HUGE),
        Requirements(min_throughput=1e12),
        SearchSettings(budget_s=1e12),
        SearchSettings(max_download_mib=1e300),
    ],
)
def test_records_built_in_python_have_the_same_bounds(record):
    with pytest.raises(InputError):
        check(record)


def test_the_largest_machines_are_within_the_bounds():
    resolve(flags={"threads": "512", "batch-size": "4096", "image-size": "1024", "budget": "24h"})
    assert input_bytes([(4096, 3, 384, 384)]) < LARGEST_INPUT_BYTES


def test_a_batch_is_bounded_together_with_its_images():
    with pytest.raises(InputError, match="65536×3×224×224 takes 37 GiB"):
        input_bytes([(65_536, 3, 224, 224)])


@pytest.mark.parametrize("name", list(RANGES))
def test_only_whole_numbers_in_the_range_pass(name):
    least, most = RANGES[name]
    assert whole(name, least) == least
    assert whole(name, most) == most
    for wrong in (least - 1, most + 1, HUGE, -HUGE, True, 1.0, "1", None, float("nan")):
        with pytest.raises(InputError):
            whole(name, wrong)


def test_the_api_refuses_before_it_loads(tmp_path):
    artifact = make_artifact(tmp_path)
    for asked in ({"threads": 100_000}, {"batch_size": 10**6}, {"threads": 2.0}, {"batch_size": 0}):
        with pytest.raises(InputError):
            predict.from_artifact(artifact, **asked)
    with predict.from_artifact(artifact) as predictor, pytest.raises(InputError, match="top is"):
        predictor.predict(artifact.photos[0], top=HUGE)
