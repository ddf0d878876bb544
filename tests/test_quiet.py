"""Whether others take the machine's processors: read, waited for, and marked."""

import io
import math
import subprocess
import sys
import time

import pytest

from vitrail.cli.status import CLEAR_LINE, Heartbeat, Status
from vitrail.measure import quiet
from vitrail.measure.quiet import BusyReading

pytestmark = pytest.mark.slow

SPIN = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"


def test_what_others_take_is_seen():
    # A process that was handed over to init is nobody's child: like another program's.
    # Without our pipe, whose end `run` would wait for.
    starter = (
        "import subprocess as s, sys\n"
        f"p = s.Popen([sys.executable, '-c', {SPIN!r}], stdout=s.DEVNULL, stderr=s.DEVNULL)\n"
        "print(p.pid)"
    )
    pid = int(subprocess.run([sys.executable, "-c", starter], capture_output=True, check=True).stdout)
    try:
        seen = quiet.read(1.0)
    finally:
        subprocess.run(["kill", str(pid)], check=True)
    assert seen.busy > 0.4
    assert not seen.quiet
    assert str(seen).startswith("other processes take ")


def test_what_this_process_and_its_children_take_is_not_counted_as_others():
    total = quiet._busy_s(None)
    child = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        own = quiet._own_s()
        quiet.read(0.5)
        spent_by_child = quiet._own_s() - own
    finally:
        child.kill()
        child.wait()
    assert quiet._busy_s(None) > total
    assert spent_by_child > 0.2


def test_waiting_ends_when_the_machine_is_quiet_and_says_so_once():
    readings = iter([BusyReading(1.4, 2), BusyReading(0.6, 2), BusyReading(0.05, 2), BusyReading(1.0, 2)])
    told = []
    last = quiet.wait(60.0, told.append, reader=lambda: next(readings), clock=lambda: 0.0)
    assert last.busy == 0.05
    assert [reading.busy for reading in told] == [1.4]


def test_waiting_ends_with_its_time_and_tells_what_is_left():
    now = iter(range(100))
    last = quiet.wait(3.0, reader=lambda: BusyReading(1.0, 2), clock=lambda: next(now))
    assert not last.quiet
    assert next(now) == 4


def test_a_quiet_machine_is_read_once_and_nothing_is_said():
    readings = iter([BusyReading(0.0, 2)])
    told = []
    assert quiet.wait(60.0, told.append, reader=lambda: next(readings)).quiet
    assert told == []


# --- what is being done is said ---------------------------------------------------------------------


def test_a_log_shows_what_is_being_done_and_stops_with_it():
    stream = io.StringIO()
    with Heartbeat(stream, every_s=0.05) as heart:
        heart.doing("exporting a\nmodel", 90.0)
        time.sleep(0.3)
    said = stream.getvalue()
    time.sleep(0.15)
    assert stream.getvalue() == said
    assert len(said.splitlines()) >= 2
    assert all(line.endswith("s, exporting a\\nmodel, 1:30 left") for line in said.splitlines())


def test_no_clock_runs_where_the_budget_does_not():
    stream = io.StringIO()
    Status(stream).doing("reading photos", math.inf)
    assert stream.getvalue() == "  … reading photos"
    log = io.StringIO()
    with Heartbeat(log, every_s=60.0) as heart:
        heart.doing("reading photos", math.inf)
        heart.say()
    assert log.getvalue() == "vitrail: 0 s, reading photos\n"


def test_a_terminal_shows_one_line_that_gives_way():
    stream = io.StringIO()
    status = Status(stream)
    status.doing("exporting a model", 90.0)
    status.line("[1/2] a model")
    status.clear()
    assert stream.getvalue() == f"  … exporting a model  1:30 left{CLEAR_LINE}[1/2] a model\n"
