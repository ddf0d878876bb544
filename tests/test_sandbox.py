"""A child may crash, hang, eat memory or lie on stdout: each is a reason, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from vitrail.measure.sandbox import Child, ChildFailure, call

LIMITS = {"timeout_s": 30.0, "memory_mib": 2048.0}


def echo(payload):
    return {"got": payload, "pid": os.getpid()}


def noisy(payload):
    print("this must not reach the protocol")
    os.write(1, b"neither must this\n")
    return payload


def crash(payload):
    os.kill(os.getpid(), signal.SIGSEGV)


def vanish(payload):
    os.kill(os.getpid(), signal.SIGKILL)


def leave(payload):
    print("last words", file=sys.stderr)
    os._exit(7)


def hang(payload):
    time.sleep(60)


def eat(payload):
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20) * 20))


def broken(payload):
    raise ZeroDivisionError("one\nover zero")


class Counter:
    def __init__(self):
        self.value = 0

    def add(self, number):
        self.value += number
        return self.value


def counter(payload):
    return Counter()


def start_and_wait(payload):
    """A parent inside a child, for killing it."""
    child = Child("test_sandbox:hang", {}, memory_mib=512)
    print(child._process.pid, flush=True)
    time.sleep(60)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Children import this file by its module name."""
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__), prepend=os.pathsep)


def test_a_result_comes_back_from_another_process():
    answer = call("test_sandbox:echo", {"x": [1, "ä"]}, **LIMITS)
    assert answer["got"] == {"x": [1, "ä"]}
    assert answer["pid"] != os.getpid()


def test_what_libraries_print_stays_out_of_the_protocol():
    assert call("test_sandbox:noisy", {"a": 1}, **LIMITS) == {"a": 1}


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("crash", r"crashed \(SIGSEGV\)"),
        ("vanish", r"killed by the system \(SIGKILL\)"),
        ("leave", r"ended with code 7: last words"),
        ("broken", r"failed: ZeroDivisionError: one over zero"),
        ("missing", r"failed: AttributeError"),
    ],
)
def test_each_ending_is_a_reason(function, reason):
    with pytest.raises(ChildFailure, match=reason):
        call(f"test_sandbox:{function}", {}, **LIMITS)


def test_a_hang_ends_at_the_time_limit():
    begin = time.monotonic()
    with pytest.raises(ChildFailure, match="timed out after 1 s"):
        call("test_sandbox:hang", {}, timeout_s=1.0, memory_mib=2048)
    assert time.monotonic() - begin < 20


def test_memory_ends_at_its_limit_and_not_at_the_machine_s():
    with pytest.raises(ChildFailure, match="memory limit of 300 MiB"):
        call("test_sandbox:eat", {}, timeout_s=60.0, memory_mib=300)


def test_a_session_keeps_its_state_between_calls():
    with Child("test_sandbox:counter", {}, memory_mib=512) as child:
        assert child.result(30) is None
        assert [child.call("add", 30, number=n) for n in (1, 2, 3)] == [1, 3, 6]
        with pytest.raises(ChildFailure, match="TypeError"):
            child.call("add", 30, number="x")
        assert child.call("add", 30, number=4) == 10


def test_closing_ends_the_process():
    child = Child("test_sandbox:hang", {}, memory_mib=512)
    pid = child._process.pid
    child.close()
    assert not psutil.pid_exists(pid)


def test_a_child_ends_when_its_parent_is_killed():
    code = "import test_sandbox; test_sandbox.start_and_wait({})"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its parent by 10 s")
