"""Ask OpenVINO Model Server about photos: `python client.py PHOTO...`.

The server runs the model alone. Decoding, preprocessing and naming the classes are done here, by Vitrail,
whose base install needs no PyTorch: `pip install vitrail "tritonclient[http]"`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as client
from tritonclient.utils import np_to_triton_dtype

from vitrail import tasks
from vitrail.images.decode import decode
from vitrail.images.preprocess import resized_short_side

HERE = Path(__file__).parent
FACTS = json.loads((HERE / "client.json").read_text(encoding="utf-8"))
TASK = tasks.read(FACTS["task"], lambda name: (HERE / name).read_bytes(), "client.json")


def main() -> None:
    """Print what the model says of each photo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", metavar="PHOTO", nargs="+")
    parser.add_argument("--url", default="localhost:8000", help="the server's HTTP address (localhost:8000)")
    args = parser.parse_args()
    with client.InferenceServerClient(args.url) as server:
        for photo in args.photos:
            print(photo)
            result = answer(server, photo)
            for ranked in getattr(result, "top", ()):
                print(f"  {ranked.probability:6.1%}  {ranked.label}")
            if isinstance(result, np.ndarray):
                print(f"  {len(result)} numbers of length {np.linalg.norm(result):.4f}")


def answer(server: client.InferenceServerClient, photo: str) -> Any:
    """What `vitrail predict` says of a photo, with the server's scores."""
    image = decode(photo, short_side=resized_short_side(TASK.preprocess))
    (row,) = TASK.prepare([image]).values()
    batch = np.repeat(row, FACTS["batch"], axis=0)  # the model is compiled for so many images
    given = client.InferInput(FACTS["input"], batch.shape, np_to_triton_dtype(batch.dtype))
    given.set_data_from_numpy(batch)
    scores = server.infer(FACTS["name"], [given]).as_numpy(FACTS["output"])[:1]
    (spec,) = TASK.graph("").outputs
    return TASK.finish({spec.name: scores})[0]


if __name__ == "__main__":
    main()
