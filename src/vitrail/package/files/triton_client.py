"""Ask Triton what is on photos: `python client.py PHOTO...`; needs `pip install "tritonclient[http]"`.

The server decodes and preprocesses; a photo is sent as the bytes of its file.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import tritonclient.http as triton

FACTS = json.loads(Path(__file__).with_name("client.json").read_text(encoding="utf-8"))


def main() -> None:
    """Print the five best labels of each photo, or the length of its vector."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", metavar="PHOTO", nargs="+")
    parser.add_argument("--url", default="localhost:8000", help="Triton's HTTP address (localhost:8000)")
    args = parser.parse_args()
    with triton.InferenceServerClient(args.url) as client:
        for photo in args.photos:
            print(photo)
            for line in answer(client, Path(photo).read_bytes()):
                print(f"  {line}")


def answer(client: triton.InferenceServerClient, photo: bytes) -> list[str]:
    """Lines about one photo."""
    image = triton.InferInput("image", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
    wanted = triton.InferRequestedOutput(FACTS["output"])
    row = client.infer(FACTS["name"], [image], outputs=[wanted]).as_numpy(FACTS["output"])[0]
    if not FACTS["labels"]:
        return [f"{len(row)} numbers of length {np.linalg.norm(row):.4f}"]
    place = Path(__file__).parent / "models" / FACTS["name"] / "labels.txt"
    labels = place.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    found = probabilities(row.astype(np.float64))
    return [f"{found[k]:6.1%}  {labels[k]}" for k in np.argsort(-row, kind="stable")[:5]]


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Over all classes, or of each by itself where the model was trained so."""
    if FACTS["probability"] == "sigmoid":
        return np.exp(-np.logaddexp(0.0, -scores))
    shifted = np.exp(scores - scores.max())
    return shifted / shifted.sum()


if __name__ == "__main__":
    main()
