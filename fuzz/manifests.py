"""Re-signed manifests: artifacts whose values were changed and whose digests were made to fit again.

    python fuzz/manifests.py --cases 2000 --seed 1

Only the checks of values can refuse such an artifact. Each case must be refused with a sentence (an
InputError or another error of Vitrail's with exit code 2), or answer as the original does. Anything else is a
finding: other answers, a foreign exception, a crash, or a case that takes over `--limit` seconds. Cases run
in a child with a memory limit; one that ends the child is counted and the next goes on. The last line of
stdout is one JSON document.

A changed network (kind `model`) is judged by crashes, foreign exceptions and time alone: only a signature
tells it from the original. For the same reason `probability` is never changed to its other valid meaning.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MEMORY_BYTES = 6 << 30
STRINGS: tuple[str, ...] = (
    "", " ", "nan", "-1", "1e400", "../../etc/passwd", "/etc/passwd", "a\0b", "\ud800", "x" * 100_000,
    "a\nb", "☃",
    "softmax", "center", "squash", "bicubic", "bilinear", "fp32", "bf16", "int8", "openvino", "onnxruntime",
    "pytorch", "cpu", "cuda", "request", "model", "accuracy", "latency", "labels.txt", "manifest.json",
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2,
    7,
    1e-4,
    -0.5,
    0.5,
    1e-300,
    1e300,
    -1e300,
    10**12,
    -(10**12),
    2**31,
    2**63,
    2**64,
    10**30,
    10**320,
    float("nan"),
    float("inf"),
    65_537,
    100_000,
)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"a": 1}, [0.5, 0.5], ["a"])


# --- originals ------------------------------------------------------------------------------------


def originals(folder: Path) -> dict[str, Path]:
    """Two small artifacts whose deciding values are not those of the records' defaults."""
    sys.path.insert(0, str(ROOT / "tests"))
    import artifacts

    usual, task = artifacts.PREPROCESS, artifacts.TASK
    artifacts.PREPROCESS = replace(
        usual,
        crop=0.9,
        crop_mode="squash",
        interpolation="bilinear",
        mean=(0.4, 0.5, 0.6),
        std=(0.3, 0.2, 0.25),
    )
    artifacts.TASK = replace(task, preprocess=artifacts.PREPROCESS, probability="sigmoid")
    try:
        made = {
            "openvino": artifacts.make_artifact(folder / "a"),
            "onnxruntime": artifacts.make_onnx_artifact(folder / "b"),
        }
    finally:
        artifacts.PREPROCESS, artifacts.TASK = usual, task
    return {name: artifact.path for name, artifact in made.items()}


# --- one case ---------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path in a JSON document, the root's aside."""
    items: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutate(document: dict[str, Any], rng: random.Random) -> str:
    """Change one value in place; returns what was done."""
    path = rng.choice([p for p in places(document) if p[0] not in ("files", "digest")])
    holder: Any = document
    for key in path[:-1]:
        holder = holder[key]
    key, old = path[-1], holder[path[-1]]
    way = rng.choice(("drop", "other", "other", "near", "near", "near", "grow"))
    if way == "drop":
        del holder[key]
        return f"drop {'.'.join(map(str, path))}"
    new: Any
    if way == "near" and isinstance(old, bool | int | float):
        size = float(min(max(old, -1e300), 1e300))  # a second change may meet a whole number beyond floats
        new = rng.choice((*NUMBERS, -old, size * 1e6, size / 1e6, old + 1, size, str(size)))
    elif way == "near" and isinstance(old, str):
        new = rng.choice((*STRINGS, old + " ", old.upper(), old[:-1]))
    elif way == "grow" and isinstance(old, list):
        new = rng.choice((old * 2, old[:-1], old[::-1], [*old, None], old * 1000))
    elif way == "grow" and isinstance(old, dict):
        new = {**old, rng.choice(("unknown", "", "\ud800")): rng.choice(NUMBERS)}
    elif way == "grow":
        new = nested(rng.choice((10, 500, 100_000)))
    else:
        new = rng.choice((*OTHERS, *NUMBERS, *STRINGS))
    if path == ("task", "probability") and new == "softmax":
        new = "Softmax"
    holder[key] = new
    return f"{'.'.join(map(str, path))} = {str(new)[:60]!r}"


def nested(depth: int) -> str:
    """Marks a value that becomes `depth` lists, one in the other, in the text."""
    return f"@nested{depth}@"


def signed(document: dict[str, Any]) -> str:
    """The document's text with the digest of its own canonical form, also where that form is no JSON."""
    body = {k: v for k, v in document.items() if k != "digest"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode("ascii", "surrogatepass")).hexdigest()
    text = json.dumps({**body, "digest": digest})
    for depth in (10, 500, 100_000):
        text = text.replace(f'"{nested(depth)}"', "[" * depth + "]" * depth)
    return text


def npy(shape: tuple[int, ...], dtype: str, data: bytes) -> bytes:
    """A `.npy` file whose header says what it likes."""
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def of_labels(data: bytes, rng: random.Random) -> bytes:
    """The labels' file, made wrong."""
    lines = data.split(b"\n")
    wrong = [b"", b"\xff" + data, data[:-1] + b"\xc3\n", data + b"more\n", b"\n" + data]
    wrong += [b"\n".join(lines[1:]), data.replace(lines[0], b"", 1), data.decode().encode("utf-16")]
    return rng.choice(wrong)


def of_outputs(data: bytes, rng: random.Random) -> bytes:
    """An outputs file, made wrong."""
    wrong = [b"", data[:20], data[:-4], data + b"\0" * 4, data.replace(b"NUMPY\x01", b"NUMPY\x03")]
    wrong += [npy((10**9, 10**9), "<f4", b""), npy((-3, 5), "<f4", data), npy((3, 5), "<f8", data)]
    wrong += [npy((3, 5), "|O", data), npy((3, 5), "<f4", b"\0\0\xc0\x7f" * 15)]
    return rng.choice(wrong)


def of_model(data: bytes, rng: random.Random) -> bytes:
    """A network whose declared numbers are absurd, or cut off, or with some bytes of its head changed."""
    way = rng.choice(("cut", "bytes", "number", "number"))
    if way == "cut":
        return data[: rng.randrange(len(data))]
    if way == "number" and data.startswith(b"<?xml"):
        text = data.decode()
        spots = [i for i, c in enumerate(text) if c.isdigit() and not text[i - 1].isdigit()]
        at = rng.choice(spots)
        end = next(i for i in range(at, len(text)) if not text[i].isdigit())
        return (
            text[:at] + rng.choice(("999999999999", "-1", "0", "18446744073709551615", "")) + text[end:]
        ).encode()
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(min(len(data), 600))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


FILES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "labels.txt": of_labels,
    "reference/own/scores.npy": of_outputs,
    "reference/fp32/scores.npy": of_outputs,
}


def make(original: Path, target: Path, rng: random.Random) -> tuple[str, str]:
    """Write one case to `target`; returns its kind (`value`, `file` or `model`) and what was done."""
    shutil.copytree(original, target)
    document = json.loads((target / "manifest.json").read_text())
    kind = rng.choices(("value", "file", "model"), (80, 10, 10))[0]
    if kind == "value":
        done = " and ".join(mutate(document, rng) for _ in range(rng.choice((1, 1, 1, 2))))
    else:
        models = [n for n in document["files"] if n.endswith((".xml", ".onnx"))]
        name = rng.choice(list(FILES) if kind == "file" else models)
        data = FILES.get(name, of_model)((target / name).read_bytes(), rng)
        (target / name).write_bytes(data)
        document["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        done = name
    (target / "manifest.json").write_text(signed(document))
    return kind, done


# --- the child that tries them ------------------------------------------------------------------------


def answer(path: Path, photos: list[str]) -> list[Any]:
    """What an artifact says of the photos."""
    from vitrail import predict

    with predict.load(path) as predictor:
        found = predictor.predict(photos)
    return [[[r.label, r.index, r.probability] for r in p.top] for p in found]


def serve() -> None:
    """Answer one line per case: the JSON list of arguments of `answer` in, the outcome out."""
    from vitrail.errors import VitrailError

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what engines print by themselves
    for line in sys.stdin:
        path, photos = json.loads(line)
        try:
            outcome = {"answer": answer(Path(path), photos)}
        except VitrailError as error:
            outcome = {"refused": type(error).__name__, "code": error.exit_code, "said": str(error)[:300]}
        except BaseException as error:
            outcome = {"foreign": f"{type(error).__name__}: {str(error)[:300]}"}
        answers.write(json.dumps(outcome) + "\n")
        answers.flush()


class Tried:
    """The child, begun again whenever a case has ended it."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._child: subprocess.Popen[str] | None = None

    def ask(self, path: Path, photos: list[str]) -> dict[str, Any]:
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, __file__, "--serve"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        child = self._child
        late = threading.Timer(self.limit_s, child.kill)
        late.start()
        try:
            child.stdin.write(json.dumps([str(path), photos]) + "\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            line = child.stdout.readline()  # type: ignore[union-attr]
        except BrokenPipeError:
            line = ""
        finished = late.is_alive()
        late.cancel()
        if line:
            return json.loads(line)
        self.close()
        return {"crash": "ended by a signal"} if finished else {"hang": f"over {self.limit_s:g} s"}

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for stream in (self._child.stdin, self._child.stdout):
                if stream is not None:
                    stream.close()
            self._child = None


# --- the campaign -------------------------------------------------------------------------------------


def same(found: list[Any], expected: list[Any]) -> bool:
    """Whether labels and order are equal, and probabilities up to the rounding of a fresh load."""
    names = [[row[:2] for row in image] for image in found] == [
        [row[:2] for row in image] for image in expected
    ]
    return names and np.allclose(
        [row[2] for image in found for row in image],
        [row[2] for image in expected for row in image],
        atol=1e-5,
    )


def campaign(
    cases: int, seed: int, *, limit_s: float = 10.0, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Try `cases` artifacts; the document that the command prints."""
    counts: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="vitrail-fuzz-") as name:
        folder = Path(name)
        sound = originals(folder)
        photos = [str(p) for p in sorted((sound["openvino"] / "reference" / "photos").iterdir())]
        tried = Tried(limit_s)
        try:
            expected = {engine: tried.ask(path, photos)["answer"] for engine, path in sound.items()}
            for case in range(cases):
                rng = random.Random(f"{seed} {case}")
                engine = rng.choice(list(sound))
                target = folder / "case"
                kind, done = make(sound[engine], target, rng)
                outcome = tried.ask(target, photos)
                shutil.rmtree(target)
                word = judged(kind, outcome, expected[engine])
                counts[f"{kind}: {word}"] += 1
                if word.startswith("!"):
                    findings.append({"case": case, "engine": engine, "kind": kind, "done": done, **outcome})
                    say(f"{case}: {engine} {done}: {word} {str(outcome)[:200]}")
        finally:
            tried.close()
    return {"cases": cases, "seed": seed, "counts": dict(sorted(counts.items())), "findings": findings}


def judged(kind: str, outcome: dict[str, Any], expected: list[Any]) -> str:
    """One word for an outcome; findings begin with `!`."""
    if "refused" in outcome:
        return f"refused ({outcome['refused']})" if outcome["code"] == 2 or kind == "model" else "!exit code"
    if "answer" in outcome:
        if same(copy.deepcopy(outcome["answer"]), expected):
            return "same answers"
        return "other answers" if kind == "model" else "!other answers"
    return f"!{next(iter(outcome))}"


def main() -> int:
    """Run the campaign, or serve it as its child; 1 if there are findings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=10.0, help="seconds of one case")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return 0
    found = campaign(args.cases, args.seed, limit_s=args.limit, say=lambda line: print(line, file=sys.stderr))
    for word, count in found["counts"].items():
        print(f"{count:6}  {word}")
    print(json.dumps(found))
    return 1 if found["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
