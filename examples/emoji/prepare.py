"""The emoji packages -> RGB pictures on white, and one manifest of pictures and texts with splits."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

STYLES = ("apple", "facebook", "google", "twitter")
VERSION = "16.0.0"
NEW_NAMES = 0.12
"""Share of the names that no picture of any style is learned with."""
VALIDATED = 0.15
"""Share of the other names of which one picture, of one style, is kept for validation."""


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One symbol, whatever it is drawn like."""

    key: str
    """Its code points; pictures of it in all styles are called alike."""
    file: str
    name: str
    others: tuple[str, ...]
    """Other ways to say its name."""
    category: str
    kind: str
    """Subcategory, in words: `animal mammal`."""
    new: bool
    """Whether its name was kept from training."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What training says of its pictures."""
        return (self.name, *self.others, f"{self.name}, {self.kind}")


@dataclass(frozen=True, kw_only=True)
class Picture:
    path: Path
    style: str
    emoji: Emoji
    split: str


def packages(folder: Path) -> dict[str, Path]:
    """The unpacked package of each style; fetched with npm if it is neither there nor packed."""
    found = {}
    for style in STYLES:
        name = f"emoji-datasource-{style}"
        place, packed = folder / name, folder / f"{name}-{VERSION}.tgz"
        if not (place / "package" / "emoji.json").is_file():
            if not packed.is_file():
                _fetch(f"{name}@{VERSION}", folder)
            place.mkdir(exist_ok=True)
            wanted = (f"package/img/{style}/64/", "package/emoji.json")
            with tarfile.open(packed) as archive:
                members = [m for m in archive if m.name.startswith(wanted)]
                archive.extractall(place, members, filter="data")
        found[style] = place / "package"
    return found


def _fetch(package: str, folder: Path) -> None:
    if shutil.which("npm") is None:
        sys.exit(f"There is no npm here: run `npm pack {package}` elsewhere and put the file into {folder}.")
    print(f"$ npm pack {package}", flush=True)
    subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def emojis(package: Path, limit: int | None) -> list[Emoji]:
    """All symbols that every style draws; skin tones are left out. `limit`: only so many, for a trial."""
    found, names = [], set()
    for row in sorted(json.loads((package / "emoji.json").read_text()), key=lambda row: row["unified"]):
        everywhere = all(row[f"has_img_{style}"] for style in STYLES)
        name = _words(row["name"] or row["short_name"])
        if not everywhere or row["category"] == "Component" or name in names:
            continue
        names.add(name)
        others = dict.fromkeys(_words(short) for short in row["short_names"])
        others.pop(name, None)
        found.append(
            Emoji(
                key=row["unified"],
                file=row["image"],
                name=name,
                others=tuple(others),
                category=row["category"],
                kind=_words(row["subcategory"]),
                new=_share(row["unified"], "name") < NEW_NAMES,
            )
        )
    # Every so many of all, so that a trial has all categories.
    return found if limit is None else found[:: max(1, len(found) // limit)][:limit]


def write(folder: Path, unpacked: dict[str, Path], known: list[Emoji], unseen: str) -> list[Picture]:
    """Draw all pictures and write `pairs.csv`; pictures of the unseen style and of new names are `test`."""
    pictures = []
    for style, package in unpacked.items():
        (folder / "images" / style).mkdir(parents=True, exist_ok=True)
        for emoji in known:
            target = folder / "images" / style / f"{emoji.name.replace('/', ' ')[:80]}.png"
            source = package / "img" / style / "64" / emoji.file
            if not target.is_file():
                _on_white(source, target)
            split = _split(emoji, style, unseen)
            pictures.append(Picture(path=target, style=style, emoji=emoji, split=split))
    with open(folder / "pairs.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "text", "split", "category"])
        for picture in pictures:
            path = picture.path.relative_to(folder)
            emoji = picture.emoji
            writer.writerows([path, text, picture.split, emoji.category] for text in emoji.texts)
    return pictures


def _split(emoji: Emoji, style: str, unseen: str) -> str:
    if style == unseen or emoji.new:
        return "test"
    learned = [s for s in STYLES if s != unseen]
    shown = learned[int(_share(emoji.key, "style") * len(learned))]
    return "validation" if style == shown and _share(emoji.key, "validation") < VALIDATED else "train"


def _on_white(source: Path, target: Path) -> None:
    """`vitrail` drops alpha, and under a transparent pixel any colour may be stored."""
    with Image.open(source) as picture:
        drawn = picture.convert("RGBA")
        white = Image.new("RGBA", drawn.size, "white")
        Image.alpha_composite(white, drawn).convert("RGB").save(target)


def _words(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())


def _share(key: str, what: str) -> float:
    """From 0 to 1, the same for the same key."""
    return int.from_bytes(hashlib.sha256(f"{what} {key}".encode()).digest()[:4], "big") / 2**32
