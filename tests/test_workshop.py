"""The process that exports: one for many jobs, and no job's end is another's."""

import os
import signal
import time

import msgspec
import pytest

from vitrail.export.workshop import Workshop
from vitrail.measure.sandbox import ChildFailure, ChildTimeout


class Request(msgspec.Struct):
    what: str = ""


class Jobs:
    """What the process under test answers; its jobs have the names of export/work.py's."""

    def export(self, payload):
        if payload["what"] == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if payload["what"] == "hang":
            time.sleep(60)
        if payload["what"] == "refuse":
            raise ValueError("a shape does not fit")
        if payload["what"] == "slow":
            time.sleep(1)
        return {"pid": os.getpid(), "what": payload["what"]}


def jobs(_):
    return Jobs()


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    folders = (os.path.dirname(__file__), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))


@pytest.fixture
def workshop():
    with Workshop("test_workshop:jobs") as made:
        yield made


def run(workshop, what="", timeout_s=30.0):
    return workshop.run("export", Request(what), timeout_s=timeout_s, name="exporting")


def test_one_process_does_one_job_after_another(workshop):
    assert run(workshop)["pid"] == run(workshop)["pid"] != os.getpid()


def test_a_job_that_fails_leaves_the_process_to_the_next(workshop):
    first = run(workshop)["pid"]
    with pytest.raises(ChildFailure, match="exporting failed: ValueError: a shape does not fit"):
        run(workshop, "refuse")
    assert run(workshop)["pid"] == first


@pytest.mark.parametrize(
    ("what", "timeout_s", "kind", "said"),
    [
        ("crash", 30.0, ChildFailure, "exporting crashed"),
        ("hang", 0.5, ChildTimeout, "exporting timed out after 0 s"),
    ],
)
def test_a_process_that_ended_gives_way_to_a_new_one(workshop, what, timeout_s, kind, said):
    first = run(workshop)["pid"]
    with pytest.raises(kind, match=said):
        run(workshop, what, timeout_s)
    assert run(workshop)["pid"] != first


def test_a_process_that_holds_too_much_is_ended_after_its_job(workshop, monkeypatch):
    monkeypatch.setattr("vitrail.export.workshop.KEPT_MIB", 1.0)
    assert run(workshop)["pid"] != run(workshop)["pid"]


def test_libraries_that_cannot_be_loaded_are_a_failure_and_not_a_hang():
    with (
        Workshop("test_workshop:nothing_of_this_name") as made,
        pytest.raises(ChildFailure, match="nothing_of_this_name"),
    ):
        run(made)


def test_an_interrupted_job_does_not_answer_for_the_next_one(workshop):
    """Ctrl-C while a job runs, then another job: its answer must be its own."""
    first = run(workshop)["pid"]

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(workshop, "slow")
    finally:
        signal.signal(signal.SIGALRM, before)
    second = run(workshop)
    assert second["what"] == ""
    assert second["pid"] != first
