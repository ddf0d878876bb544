"""Recall and zero-shot accuracy of the trained CLIP, beside chance and beside nearest neighbours.

The neighbours know the pictures that were learned from, with their names. For a picture and a text they say

    score = max over known symbols of  likeness(picture, its nearest picture) · likeness(its name, text)

with pictures compared by raw pixels or by EfficientNet-Lite0's features, and names by their words (tf-idf).
So a known name is found through its own pictures, a new one through the names that share words with it.

Shapes: I pictures, T texts, K known symbols, P pictures learned from, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from prepare import Emoji, Picture
from sklearn.feature_extraction.text import TfidfVectorizer

from vitrail.embeddings import Embedder
from vitrail.errors import InputError
from vitrail.learn import retrieval
from vitrail.zeroshot.embed import open_embedder

FEATURES = "tf_efficientnet_lite0"
PIXELS = 32
Scores = Callable[[Sequence[Picture], Sequence[str]], np.ndarray]
"""pictures, texts -> (I, T)"""


def groups(pictures: Sequence[Picture], unseen: str) -> dict[str, list[Picture]]:
    """What is asked: a new style, new names, both."""
    return {
        "new style, known names": [p for p in pictures if p.style == unseen and not p.emoji.new],
        "known styles, new names": [p for p in pictures if p.style != unseen and p.emoji.new],
        "new style, new names": [p for p in pictures if p.style == unseen and p.emoji.new],
    }


def measured(pictures: Sequence[Picture], unseen: str, model: str, weights: str) -> list[dict[str, object]]:
    """One row for each group and method, figures in %."""
    learned = [p for p in pictures if p.split != "test"]
    categories = sorted({p.emoji.category for p in pictures})
    kinds = {c: sorted({p.emoji.kind for p in pictures if p.emoji.category == c}) for c in categories}
    rows: list[dict[str, object]] = []
    with open_embedder(model, weights=weights) as clip:
        methods = {"CLIP": (_clip_scores(clip), _clip_categories(clip, categories, kinds))}
        methods["neighbour by pixels"] = _neighbours(learned, _pixels)
        try:
            with open_embedder(FEATURES) as features:
                known = _vectors(features, [p.path for p in pictures])
                by_path = dict(zip((p.path for p in pictures), known, strict=True))
                methods["neighbour by Lite0"] = _neighbours(
                    learned, lambda some: np.stack([by_path[p.path] for p in some])
                )
        except InputError as error:
            print(f"EfficientNet-Lite0 is not at hand and left out: {error}")
        for group, asked in groups(pictures, unseen).items():
            if not asked:
                continue
            rows.append({"group": group, "method": "chance", **_chance(asked, len(categories))})
            for method, (scores, classify) in methods.items():
                found = _recalls(scores, asked) | {"categories": _share_right(classify(asked), asked)}
                rows.append({"group": group, "method": method, **found})
    return rows


def _names(asked: Sequence[Picture]) -> list[str]:
    return list(dict.fromkeys(p.emoji.name for p in asked))


def _recalls(scores: Scores, asked: Sequence[Picture]) -> dict[str, float]:
    names = _names(asked)
    scores_IT = torch.from_numpy(scores(asked, names)).float()
    right = [(names.index(p.emoji.name),) for p in asked]
    # As `recalls` does from embeddings: here the scores are the embeddings, each text its own axis.
    found = retrieval.recalls(scores_IT, torch.eye(len(names)), right)
    found.pop("recall_1")
    return found


def _chance(asked: Sequence[Picture], categories: int) -> dict[str, float]:
    """Of a random order; a text may have several right pictures."""
    pictures, texts = len(asked), len(_names(asked))
    each = pictures // texts
    found = {"pictures": pictures, "texts": texts}
    for k in retrieval.RECALLED_AT:
        found[f"image_to_text_{k}"] = 100.0 * min(1.0, k / texts)
        missed = np.prod([max(0, pictures - each - i) / (pictures - i) for i in range(min(k, pictures))])
        found[f"text_to_image_{k}"] = 100.0 * float(1 - missed)
    return found | {"categories": 100.0 / categories}


def _share_right(guessed: Sequence[str], asked: Sequence[Picture]) -> float:
    return 100.0 * float(np.mean([g == p.emoji.category for g, p in zip(guessed, asked, strict=True)]))


# --- CLIP -----------------------------------------------------------------------------------------


def _vectors(embedder: Embedder, paths: Sequence[object]) -> np.ndarray:
    found = []
    for start in range(0, len(paths), 256):
        for vector in embedder.images_each([str(path) for path in paths[start : start + 256]]):
            if isinstance(vector, InputError):
                raise vector
            found.append(vector)
    return _unit(np.stack(found))


def _texts(embedder: Embedder, texts: Sequence[str]) -> np.ndarray:
    return _unit(np.stack([np.asarray(vector) for vector in embedder.texts_each(list(texts))]))


def _clip_scores(clip: Embedder) -> Scores:
    return lambda asked, names: _vectors(clip, [p.path for p in asked]) @ _texts(clip, names).T


def _clip_categories(
    clip: Embedder, categories: Sequence[str], kinds: dict[str, list[str]]
) -> Callable[[Sequence[Picture]], list[str]]:
    """A category's prompts are what it holds: `animal bird`, `animal bug`, …"""
    class_KD = _unit(np.stack([_texts(clip, kinds[name]).mean(0) for name in categories]))

    def classify(asked: Sequence[Picture]) -> list[str]:
        best = (_vectors(clip, [p.path for p in asked]) @ class_KD.T).argmax(1)
        return [categories[k] for k in best]

    return classify


# --- nearest neighbours ---------------------------------------------------------------------------


def _pixels(some: Sequence[Picture]) -> np.ndarray:
    rows = []
    for picture in some:
        with Image.open(picture.path) as image:
            rows.append(np.asarray(image.resize((PIXELS, PIXELS)), np.float32).ravel())
    return _unit(255.0 - np.stack(rows))  # the white ground counts for nothing


def _neighbours(
    learned: Sequence[Picture], features: Callable[[Sequence[Picture]], np.ndarray]
) -> tuple[Scores, Callable[[Sequence[Picture]], list[str]]]:
    known = list({p.emoji.key: p.emoji for p in learned}.values())
    place = {emoji.key: k for k, emoji in enumerate(known)}
    owner_P = np.array([place[p.emoji.key] for p in learned])
    order = np.argsort(owner_P, kind="stable")
    starts = np.searchsorted(owner_P[order], np.arange(len(known)))
    learned_PD = features(learned)[order]

    def likeness(asked: Sequence[Picture]) -> np.ndarray:
        return np.maximum.reduceat(features(asked) @ learned_PD.T, starts, axis=1)  # (I, K)

    def scores(asked: Sequence[Picture], names: Sequence[str]) -> np.ndarray:
        words_KT = _words(known, names)
        return np.stack([(row_K[:, None] * words_KT).max(0) for row_K in likeness(asked)])

    def classify(asked: Sequence[Picture]) -> list[str]:
        return [known[k].category for k in likeness(asked).argmax(1)]

    return scores, classify


def _words(known: Sequence[Emoji], names: Sequence[str]) -> np.ndarray:
    reader = TfidfVectorizer(token_pattern=r"\S+").fit([*(e.name for e in known), *names])
    shared = reader.transform([e.name for e in known]) @ reader.transform(names).T
    return np.asarray(shared.todense(), np.float32)


def _unit(rows_ND: np.ndarray) -> np.ndarray:
    return rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), 1e-9)
