"""An artifact behind LitServe, for `serve.py`: the same engine file, decoder and preprocessing.

    python benchmarks/litserve_peer.py ARTIFACT PORT --workers 2 --batch 1

`POST /predict` takes a form whose file is called `request`. Images reach the workers as bytes, which is the
least that LitServe can be asked to copy.
"""

# Annotations stay objects here: LitServe looks at them.
import argparse
import os
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import File

from vitrail.predict import load

WAIT_S = 0.005
"""What LitServe waits for a batch to fill."""


class Artifact(litserve.LitAPI):
    """Decode, prepare, run and finish, as `Predictor.request` does them."""

    def __init__(self, path: str, threads: int, batch: int) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=WAIT_S if batch > 1 else 0.0)
        self.path, self.threads, self.most = path, threads, batch

    def setup(self, device: str) -> None:
        self.model = load(self.path, threads=self.threads, batch_size=self.most, many=True)

    def decode_request(self, request: Annotated[bytes, File()]) -> dict[str, np.ndarray]:
        return self.model.prepare([request])

    def batch(self, inputs: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([each[name] for each in inputs]) for name in inputs[0]}

    def predict(self, x: dict[str, np.ndarray]) -> list[Any]:
        return self.model.task.finish(self.model.run(x))

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        one = output[0] if isinstance(output, list) else output
        return {"top": [[each.label, each.probability] for each in one.top]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact")
    parser.add_argument("port", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    threads = max(1, len(os.sched_getaffinity(0)) // args.workers)
    api = Artifact(args.artifact, threads, args.batch)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=args.workers)
    server.run(host="127.0.0.1", port=args.port, generate_client_file=False, log_level="error")


if __name__ == "__main__":
    main()
