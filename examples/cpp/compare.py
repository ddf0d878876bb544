"""Compare the C++ example's answer with `vitrail predict --json`: same labels, probabilities within 0.001."""

import json
import sys
from pathlib import Path

MOST = 1e-3


def main(text: str, document: str) -> int:
    """0: they agree; 1: they do not."""
    rows = [line.split("\t", 1) for line in Path(text).read_text(encoding="utf-8").splitlines()]
    (prediction,) = json.loads(Path(document).read_text(encoding="utf-8"))["predictions"]
    theirs = [(ranked["label"], ranked["probability"]) for ranked in prediction["top"]]
    if [label for _, label in rows] != [label for label, _ in theirs]:
        print(f"differs: vitrail predict says {theirs}", file=sys.stderr)
        return 1
    apart = max(
        abs(float(ours) - probability) for (ours, _), (_, probability) in zip(rows, theirs, strict=True)
    )
    print(
        f"the same {len(rows)} labels in the same order, probabilities within {apart:.1e} of vitrail predict"
    )
    return 0 if apart <= MOST else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
