"""Do two workers of a Ray cluster do twice the work of one?

    python benchmarks/batch_ray.py ARTIFACT IMAGES [--rounds 2] [--shard-size 50] [--save HARDWARE]

Two local clusters by turns, one with a node of one core and one with two such nodes; the same job on
each, one thread for each task, which decodes and runs in turn. Wants a machine of two idle cores, which
also run Ray itself. Seconds are those from handing out the first shard to the last one's commit, so that
starting the workers and loading the model in each are part of them: give enough images. The last line of
standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import tempfile
from pathlib import Path

from ray.cluster_utils import Cluster

from vitrail import hardware
from vitrail.batch import job
from vitrail.batch.request import Request
from vitrail.privacy import quiet_process

RESULTS = Path(__file__).parent / "results"


def seconds(args: argparse.Namespace, workers: int, out: Path) -> tuple[float, int]:
    """Of the job on a cluster of so many workers, and its images."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(workers):
            cluster.add_node(num_cpus=1, wait=True)
        summary = job.run(
            Request(
                artifact=str(args.artifact),
                source=str(args.images),
                out=str(out),
                shard_size=args.shard_size,
                ray=cluster.address,
            )
        )
        assert summary.failed == 0
        return summary.seconds, summary.inputs
    finally:
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--shard-size", type=int, default=50)
    parser.add_argument("--save", metavar="HARDWARE")
    args = parser.parse_args()
    quiet_process()  # the clusters of this benchmark tell nobody of their use
    load_before, ratios, rates, inputs = os.getloadavg()[0], [], {1: [], 2: []}, 0
    with tempfile.TemporaryDirectory() as place:
        for number in range(args.rounds):
            took = {}
            for workers in (1, 2) if number % 2 == 0 else (2, 1):
                took[workers], inputs = seconds(args, workers, Path(place) / f"{number}-{workers}")
                rates[workers].append(round(inputs / took[workers], 1))
            ratios.append(round(took[1] / took[2], 3))
    result = {
        "machine": hardware.one_line(hardware.facts()),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "images": inputs,
        "load_before": load_before,
        "images/s of one worker": rates[1],
        "images/s of two workers": rates[2],
        "two of one": {"median": round(statistics.median(ratios), 3), "all": ratios},
    }
    if args.save:
        target = RESULTS / f"batch-ray-{args.save}-{result['date']}.json"
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
