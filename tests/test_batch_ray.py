"""Batch jobs on a local Ray cluster of several nodes: one is killed, and so is the driver. About 25 s."""

from __future__ import annotations

import builtins
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import artifacts
import pytest
from batch_kills import tree

from vitrail.batch import job
from vitrail.batch.request import Request, Silent
from vitrail.cli import main

ray = pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = [pytest.mark.slow, pytest.mark.alone]

COUNT = 40
SHARD = 2


@pytest.fixture(scope="module")
def winner(tmp_path_factory) -> str:
    return str(artifacts.make_artifact(tmp_path_factory.mktemp("ray")).path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "photos"
    artifacts.make_photos(folder, COUNT)
    (folder / "cut.png").write_bytes((folder / "photo0.png").read_bytes()[:300])
    return folder


@pytest.fixture(scope="module")
def whole(winner, photos, tmp_path_factory) -> dict[str, bytes]:
    """What the job leaves behind without Ray."""
    out = tmp_path_factory.mktemp("whole") / "out"
    summary = job.run(asked(winner, photos, out, ray=None, threads=1))
    assert (summary.results, summary.failed) == (COUNT, 1)
    return tree(out)


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        found.add_node(num_cpus=1, wait=True)
    yield found
    found.shutdown()


def asked(winner, photos, out, **options) -> Request:
    return Request(artifact=winner, source=str(photos), out=str(out), shard_size=SHARD, **options)


class Killer(Silent):
    """Kills a node when the first shard is done."""

    def __init__(self, cluster) -> None:
        self.cluster, self.killed = cluster, 0

    def tick(self, done: int, failed: int) -> None:
        if not self.killed:
            self.cluster.remove_node(self.cluster.worker_nodes.copy().pop(), allow_graceful=False)
            self.killed += 1


def test_a_node_killed_in_mid_job_loses_and_doubles_nothing(cluster, winner, photos, whole, tmp_path):
    killer = Killer(cluster)
    summary = job.run(asked(winner, photos, tmp_path / "out", ray=cluster.address), killer)
    assert killer.killed == 1
    assert (summary.results, summary.failed, summary.done_now) == (COUNT, 1, COUNT + 1)
    assert tree(tmp_path / "out") == whole
    assert 0 < sum(summary.busy[name] for name in ("read", "decode", "model")) <= 1.01
    cluster.add_node(num_cpus=1, wait=True)


def test_a_driver_that_was_killed_goes_on(cluster, winner, photos, whole, tmp_path):
    out = tmp_path / "out"
    command = ["batch", winner, str(photos), "--out", str(out), "--shard-size", str(SHARD)]
    driver = subprocess.Popen(
        [sys.executable, "-m", "vitrail", *command, "--ray", cluster.address], stderr=subprocess.PIPE
    )
    end = time.monotonic() + 60
    while not any((out / "done").glob("*.json")):
        assert time.monotonic() < end, "nothing was done"
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert not (out / "summary.json").exists()
    assert main([*command, "--ray", cluster.address]) == 1
    summary = json.loads((out / "summary.json").read_text())
    assert 0 < summary["done_now"] < COUNT + 1
    assert tree(out) == whole


def test_a_node_without_the_images_says_so(cluster, winner, photos, tmp_path, capsys, monkeypatch):
    """What a node lacks is no reason to call images missing."""
    moved = shutil.copytree(photos, tmp_path / "moved")
    real = job.ray.run

    def run(*arguments):
        shutil.rmtree(moved)
        return real(*arguments)

    monkeypatch.setattr(job.ray, "run", run)
    command = ["batch", winner, str(moved), "--out", str(tmp_path / "out"), "--ray", cluster.address]
    assert main(command) == 2
    assert f"{moved} does not exist on" in capsys.readouterr().err
    assert list((tmp_path / "out" / "done").iterdir()) == []


def test_tasks_that_no_node_has_the_cores_for_are_refused(cluster, winner, photos, tmp_path, capsys):
    """Ray would let them wait for ever."""
    command = ["batch", winner, str(photos), "--out", str(tmp_path / "out"), "--threads", "2"]
    assert main([*command, "--ray", cluster.address]) == 2
    error = capsys.readouterr().err
    assert "Each task has 2 threads, and no node of the cluster has more than 1 core: " in error


def test_no_cluster_and_no_ray_are_one_sentence(winner, photos, tmp_path, capsys, monkeypatch):
    command = ["batch", winner, str(photos), "--out", str(tmp_path / "out"), "--ray"]
    assert main([*command, "127.0.0.1:1"]) == 2
    assert "No Ray cluster answers at 127.0.0.1:1" in capsys.readouterr().err
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "ray":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "ray")
    monkeypatch.setattr(builtins, "__import__", without)
    assert main(command) == 2
    assert "[ray]" in capsys.readouterr().err
