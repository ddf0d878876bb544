"""Emoji CLIP: trained on three drawing styles, asked about a fourth and about names it never saw.

    python examples/emoji/run.py --packages emoji --out emoji-run

`--packages` is a folder with the npm packages emoji-datasource-apple, -facebook, -google, -twitter; what is
not there is fetched with npm. README.md says what the figures are.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import measure
import prepare

from vitrail.learn import clip

MODEL = "ViT-nano-8-64"
HERE = Path(__file__).parent
QUERIES = ("a dog", "red heart", "pizza", "person riding a bicycle")
COLUMNS = {
    "image_to_text_1": "image→text @1",
    "image_to_text_5": "@5",
    "text_to_image_1": "text→image @1",
    "text_to_image_5": "@5",
    "categories": "categories",
}


def main() -> int:
    args = _arguments()
    packages, out = Path(args.packages), Path(args.out)
    for folder in (packages, out):
        folder.mkdir(parents=True, exist_ok=True)
    unpacked = prepare.packages(packages)
    symbols = prepare.emojis(unpacked[args.unseen], args.limit)
    pictures = prepare.write(out, unpacked, symbols, args.unseen)
    new = sum(symbol.new for symbol in symbols)
    print(f"{len(symbols)} symbols, {new} of them with new names; unseen style: {args.unseen}", flush=True)

    run = out / "run"
    options = ["--epochs", str(args.epochs)] if args.epochs else []
    options += ["--batch-size", str(args.batch_size)] if args.batch_size else []
    options += ["--processes", str(args.processes)]
    options += [part for change in args.set for part in ("--set", change)]
    recipe = ["--recipe", str(HERE / "recipe.toml"), *options]
    code = _vitrail(
        "train-clip", "--pairs", str(out / "pairs.csv"), "--model", args.model, *recipe, "--out", str(run)
    )
    if code:
        return code
    trained = clip.read(run)
    weights = str(run / trained.weights)

    rows = measure.measured(pictures, args.unseen, args.model, weights)
    print("\n".join(_table(rows)), flush=True)

    index = out / f"{args.unseen}.parquet"
    which = ["--model", args.model, "--weights", weights]
    code = _vitrail("embed", str(out / "images" / args.unseen), *which, "--out", str(index), "--overwrite")
    for query in QUERIES if code == 0 else ():
        code = code or _vitrail("search", str(index), query, "--top", "3")
    history = trained.history
    document = {
        "model": args.model,
        "unseen_style": args.unseen,
        "symbols": len(symbols),
        "new_names": new,
        "epochs": trained.epochs,
        "seconds": history[-1]["seconds"],
        "validation": history[-1],
        "results": rows,
    }
    print(json.dumps(document))
    return code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", default="emoji", help="folder with the npm packages (emoji)")
    parser.add_argument("--out", default="emoji-run", help="folder for pictures, run and index (emoji-run)")
    parser.add_argument(
        "--unseen", choices=prepare.STYLES, default="twitter", help="style kept from training"
    )
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--batch-size", type=int, help="instead of the recipe's")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--processes", type=int, default=min(2, cores), help="that share a batch")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as `train-clip`")
    parser.add_argument("--limit", type=int, help="use so many symbols only, for a trial")
    return parser.parse_args()


def _vitrail(*command: str) -> int:
    print("$ vitrail", shlex.join(command), flush=True)
    return subprocess.run([sys.executable, "-m", "vitrail", *command]).returncode


def _table(rows: list[dict[str, object]]) -> list[str]:
    lines, group = [], None
    head = "".join(f"{title:>15}" for title in COLUMNS.values())
    for row in rows:
        if row["group"] != group:
            group = row["group"]
            lines += ["", f"{group}: {row['pictures']} pictures, {row['texts']} names (%)", " " * 20 + head]
        lines.append(f"{row['method']:20}" + "".join(f"{row[key]:15.1f}" for key in COLUMNS))
    return lines


if __name__ == "__main__":
    sys.exit(main())
