"""Does `vitrail serve` keep to what its OpenAPI document says?

    python fuzz/serve_schema.py [--examples N] [--seed S]

Schemathesis reads the document from a real server and makes requests of each operation: as described, and
not as described; where a name, an image or a tensor is wanted, also with true ones, which chance never finds.
A fault is: a status, content type, header or body that the document does not have; any status from 500 on but
a passed deadline's; a process that was started again. The last line of stdout is one JSON document; exit code
1 for a fault.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import artifacts
import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi import checks
from serving import Server

from vitrail.serve.refusals import CODES

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
MOST_FAULTS = 20


class Campaign:
    """Requests to one server, and what was wrong with their answers."""

    def __init__(self, server: Server, photo: bytes, seed: int, examples: int) -> None:
        self._server, self._photo, self._seed, self._examples = server, photo, seed, examples
        self.statuses: Counter[str] = Counter()
        self.faults: list[str] = []
        self.slowest_s = 0.0

    def run(self) -> None:
        """All operations, in every way."""
        document = schemathesis.openapi.from_url(f"{self._server.url}/openapi.json")
        for found in document.get_all_operations():
            operation = found.ok()
            for number, (mode, given) in enumerate(self._ways(operation)):
                self._try(operation, mode, given, self._seed + number)

    def _ways(
        self, operation: schemathesis.APIOperation
    ) -> Iterator[tuple[GenerationMode, dict[str, object]]]:
        yield GenerationMode.POSITIVE, {}
        yield GenerationMode.NEGATIVE, {}
        true: dict[str, object] = {}
        if "{name}" in operation.path:
            model = self._server.models()["tiny"]
            true["path_parameters"] = {"name": "tiny", "version": model["version"]}
            if "{version}" not in operation.path:
                true["path_parameters"] = {"name": "tiny"}
            yield GenerationMode.POSITIVE, true
        if operation.path.endswith("/infer"):
            side = artifacts.SIZE
            given = {"name": "images", "datatype": "FP32", "shape": [1, 3, side, side]}
            body = {"inputs": [{**given, "data": [0.5] * 3 * side * side}]}
            yield GenerationMode.POSITIVE, {**true, "body": body, "media_type": "application/json"}
        if operation.path in ("/v1/classify", "/v1/embed"):
            name = "tiny" if operation.path == "/v1/classify" else "vectors"
            photo = {"body": self._photo, "media_type": "application/octet-stream"}
            yield GenerationMode.POSITIVE, {**photo, "query": {"model": name}}

    def _try(
        self,
        operation: schemathesis.APIOperation,
        mode: GenerationMode,
        given: dict[str, object],
        seed: int,
    ) -> None:
        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=self._examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode, **given))
        def one(case: schemathesis.Case) -> None:
            self._send(case)

        try:
            one()
        except hypothesis.errors.Unsatisfiable:  # nothing about it can be wrong: a GET without parameters
            assert mode is GenerationMode.NEGATIVE

    def _send(self, case: schemathesis.Case) -> None:
        begin = time.monotonic()
        response = case.call(timeout=30)
        self.slowest_s = max(self.slowest_s, time.monotonic() - begin)
        where = f"{case.operation.method.upper()} {case.operation.path}"
        self.statuses[f"{where} {response.status_code}"] += 1
        if response.status_code >= 500 and response.status_code != CODES["deadline"]:
            self._fault(f"{where}: {response.status_code} {response.content[:200]!r}")
        try:
            case.validate_response(response, checks=CHECKS)
        except (Failure, FailureGroup) as failure:
            for each in failure.exceptions if isinstance(failure, FailureGroup) else [failure]:
                self._fault(f"{where}: {response.status_code} {each.title}: {each.message[:300]}")

    def _fault(self, fault: str) -> None:
        if fault not in self.faults and len(self.faults) < MOST_FAULTS:
            self.faults.append(fault)


def campaign(seed: int, examples: int, folder: Path) -> dict[str, object]:
    """What happened to so many examples of each operation and way."""
    tiny = artifacts.make_artifact(folder / "tiny")
    vectors = artifacts.make_embed_artifact(folder / "vectors")
    models = (f"tiny={tiny.path}", f"vectors={vectors.path}")
    options = ("--no-access-log", "--allow-activate", folder, "--max-batch", 1)
    with Server(*models, *options, cache=folder / "cache") as server:
        run = Campaign(server, tiny.photos[0].read_bytes(), seed, examples)
        begin = time.monotonic()
        run.run()
        for name, model in server.models().items():
            if model["restarts"]:
                run.faults.append(f"the process of {name} was started again")
        if "Traceback" in "".join(server.said):
            run.faults.append("a traceback: " + "".join(server.said)[-2000:])
    return {
        "seed": seed,
        "requests": run.statuses.total(),
        "faults": run.faults,
        "seconds": round(time.monotonic() - begin, 1),
        "slowest_s": round(run.slowest_s, 3),
        "statuses": dict(sorted(run.statuses.items())),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=20261128)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(args.seed, args.examples, Path(folder))
    for fault in found["faults"]:
        print("FAULT", fault)
    print(json.dumps(found))
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
