"""`vitrail train-clip`: images with texts and a model's name in, a folder with trained weights out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch

from vitrail import store
from vitrail.data import pairs as manifests
from vitrail.data.pairs import Pair, Pairs
from vitrail.errors import InputError
from vitrail.learn import pairs_room
from vitrail.learn.images import (
    EvaluationImages,
    PixelsOnDemand,
    TrainingImages,
    augmentation,
    evaluated,
    stored,
)
from vitrail.learn.launch import images_of, launched, on_threads
from vitrail.learn.pairs import Contrastive, Loss, TrainingPairs, read_texts
from vitrail.learn.recipe import Leg, Recipe
from vitrail.learn.request import RunRequest, is_done
from vitrail.learn.run import BestWeights, Run, RunWatcher, said_once
from vitrail.learn.setup import Machine
from vitrail.learn.train import train
from vitrail.learn.trained import DamagedRecord
from vitrail.models import clip, factory
from vitrail.models.clip import CLIP
from vitrail.text.tokenizer import Tokenizer, load_tokenizer
from vitrail.vocabulary import Preprocess
from vitrail.words import counted, utf8_all

__all__ = ["RECORD", "ClipRun", "ClipSetup", "read", "train_clip"]

RECORD = "clip.json"
SCHEMA_VERSION = 1
RANDOM = "random"


class ClipRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a run leaves besides its weights."""

    schema_version: int = SCHEMA_VERSION
    model: str
    """Name, for `--model` and `--arch`."""
    loss: Loss
    weights: str
    """File in the run's folder, safetensors."""
    sha256: str
    """Of that file."""
    preprocess: Preprocess
    start: str
    """`random`, or the digest of the weights that training started from."""
    recipe: str
    recipe_digest: str
    pairs: str
    """The manifest's path."""
    pairs_digest: str
    epochs: int
    """Epochs done."""
    finished: bool
    """Whether it reached its end, or the end of the leg before its extension."""
    history: list[dict[str, float]]
    """The figures of each epoch; recall and accuracy in %, on the validation pairs."""
    extended: list[Leg] = []
    """What was done before each extension."""


@dataclass(kw_only=True)
class ClipSetup:
    """What to train on what.

    Args:
        pairs: a manifest, as for `data.pairs.load`.
        model: one of `vitrail.models.clip.VARIANTS`.
        preprocess: how its images are prepared, here and wherever the weights are used.
        recipe: from `load_recipe`.
        out: the run's folder; an existing run is resumed.
        loss: None: sigmoid for a model with a bias, else clip.
        weights: a file to start from; None: random weights.
        tokenizer: tokenizer.json of a SigLIP.
        checkpoint_every: steps, in addition to the end of each epoch.
        extend: continue the finished run to the recipe's epochs.
    """

    pairs: Path
    model: str
    preprocess: Preprocess
    recipe: Recipe
    out: Path
    loss: Loss | None = None
    weights: Path | None = None
    tokenizer: Path | None = None
    checkpoint_every: int | None = None
    extend: bool = False
    machine: Machine = field(default_factory=Machine)


def train_clip(setup: ClipSetup, watcher: RunWatcher) -> ClipRun:
    """Train a CLIP on images with texts.

    Raises:
        InputError: pairs, model, loss or recipe that cannot be used, a folder that holds something else, or
            training that had to stop (see `train.train`).
    """
    loss = _loss(setup)
    _check_recipe(setup)
    tokenizer = load_tokenizer(clip.VARIANTS[setup.model].text, file=setup.tokenizer)
    fabric = launched(setup.machine, setup.recipe)
    note = watcher.note if fabric.is_global_zero else lambda _: None
    with on_threads(setup.machine.threads_each()):
        with said_once(fabric):
            pairs = manifests.load(setup.pairs)
            start = RANDOM if setup.weights is None else store.sha256_file(setup.weights)
            model = _built(setup)
            for line in _introduced(pairs, setup, model, loss):
                note(line)
            before = _record(setup.out)
            run = Run(
                folder=setup.out,
                request=RunRequest(
                    model=f"{setup.model} by {loss} loss",
                    image_size=setup.preprocess.image_size,
                    start=start,
                    data=pairs.digest,
                    recipe=setup.recipe.values(),
                ),
                record=_Recorder(setup, loss, start, pairs),
                fabric=fabric,
                every=setup.checkpoint_every,
                watcher=watcher,
                before=before,
                extend=setup.extend,
            )
            if before is not None and is_done(before, run.request):
                note("this run is finished, there is nothing left to do")
                return before
            task = _task(model, loss, pairs, setup, tokenizer, note)
            if fabric.device.type == "cpu":
                here = {"processes": setup.machine.processes, "world": fabric.world_size}
                note(pairs_room.checked(model, task.images.texts.tokens_TL, setup.recipe, **here))
        train(task, setup.recipe, run, fabric, workers=setup.machine.workers_each(fabric))
        fabric.barrier()
        return read(setup.out)


def read(folder: str | Path) -> ClipRun:
    """The record of the run in `folder`.

    Raises:
        InputError: there is no run, or its record is damaged.
    """
    file = Path(folder) / RECORD
    try:
        return msgspec.json.decode(file.read_bytes(), type=ClipRun)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder} holds no CLIP ({RECORD} is missing): name the folder that `vitrail train-clip` wrote."
        ) from None
    except msgspec.DecodeError as error:
        raise DamagedRecord(f"{file} is damaged ({error}): resume the run to write it again.") from None


def _record(folder: Path) -> ClipRun | None:
    """The existing run's record; None: there is none, or it will be written again."""
    try:
        return read(folder) if (folder / RECORD).is_file() else None
    except DamagedRecord:
        return None


# --- the request -----------------------------------------------------------------------------------


def _loss(setup: ClipSetup) -> Loss:
    """The loss that fits the model: SigLIP's needs a bias, which CLIP's would leave untrained."""
    config = clip.VARIANTS.get(setup.model)
    if config is None:
        raise InputError(
            f"Vitrail has no CLIP or SigLIP named {setup.model!r}: choose {', '.join(clip.VARIANTS)}."
        )
    loss: Loss = setup.loss or ("clip" if config.bias is None else "sigmoid")
    if (loss == "sigmoid") != (config.bias is not None):
        fitting = [n for n, c in clip.VARIANTS.items() if (c.bias is not None) == (loss == "sigmoid")]
        near = next((name for name in fitting if name.startswith(setup.model)), fitting[-1])
        has = "has no bias, which the sigmoid loss trains" if loss == "sigmoid" else "compares by sigmoids"
        raise InputError(f"{setup.model} {has}: leave --loss out, or choose --model {near}.")
    return loss


def _check_recipe(setup: ClipSetup) -> None:
    """Refuse settings of a recipe that are for classes, rather than ignore them."""
    r, fix = setup.recipe.regularization, "--recipe clip has it off"
    for name in ("label_smoothing", "mixup", "cutmix"):
        if getattr(r, name):
            raise InputError(
                f"The recipe has {name}, which is for classes: give --set regularization.{name}=0 ({fix})."
            )
    if setup.recipe.optimizer.layer_decay < 1:
        raise InputError(
            f"CLIP learns at one rate in all layers: give --set optimizer.layer_decay=1 ({fix})."
        )
    if setup.machine.strategy == "fsdp":
        raise InputError("A CLIP is trained with ddp: leave --strategy fsdp out.")


def _built(setup: ClipSetup) -> CLIP:
    """The model with its first weights, gradients on."""
    image = clip.VARIANTS[setup.model].image
    image = dataclasses.replace(image, drop_path=setup.recipe.regularization.drop_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setup.recipe.seed)
        model = factory.build(setup.model, image=image)
    assert isinstance(model, CLIP)
    if setup.weights is not None:
        factory.load_weights(model, setup.weights)
    return model.requires_grad_(True).train()


def _introduced(pairs: Pairs, setup: ClipSetup, model: CLIP, loss: Loss) -> list[str]:
    split = ", ".join(f"{len(pairs.of(s))} {s}" for s in ("train", "validation", "test"))
    texts = len({text for pair in pairs.pairs for text in pair.texts})
    begun = "random weights" if setup.weights is None else f"the weights of {setup.weights.name}"
    million = sum(p.numel() for p in model.parameters()) / 1e6
    lines = [
        f"{pairs.name}: {split}, {counted(texts, 'text')} · {setup.model}, {million:.1f} M parameters, "
        f"from {begun} · {loss} loss · recipe {setup.recipe.name}"
    ]
    if pairs.broken:
        broken = counted(len(pairs.broken), "image")
        lines.append(f"{broken} cannot be read, the first: {pairs.broken[0].reason}")
    if pairs.copies:
        straddling = sum(copy.straddles for copy in pairs.copies)
        across = f", {straddling} of them across splits" if straddling else ""
        copies = counted(len(pairs.copies), "file is a copy", "files are copies")
        lines.append(f"{copies} of another one{across}: each image counts once")
    if pairs.conflicts:
        first = pairs.conflicts[0]
        lines.append(
            f"{counted(len(pairs.conflicts), 'image')} with several categories, treated as having none; the "
            f"first: {first.paths[0]} ({' and '.join(dict.fromkeys(first.labels))})"
        )
    return lines


# --- what is learned ------------------------------------------------------------------------------


def _task(
    model: CLIP,
    loss: Loss,
    pairs: Pairs,
    setup: ClipSetup,
    tokenizer: Tokenizer,
    note: Callable[[str], None],
) -> Contrastive:
    recipe, preprocess = setup.recipe, setup.preprocess
    seen, held_out = pairs.of("train"), pairs.of("validation")
    texts, held_out_texts = (read_texts(part, tokenizer, model.config.text) for part in (seen, held_out))
    for split, known in (("training", texts), ("validation", held_out_texts)):
        if len(known.tokens_TL) < 2:
            raise InputError(
                f"All {split} images of {setup.pairs} have the same text, with nothing to distinguish: "
                "give images with other texts as well."
            )
    pixels = images_of([pair.path for pair in seen], stored(preprocess, recipe.augmentation), setup.machine)
    if isinstance(pixels, PixelsOnDemand):
        note("the images do not all fit in memory and are decoded again in each epoch")
    images = TrainingImages(
        pixels, range(len(seen)), augmentation(recipe.augmentation, preprocess), seed=recipe.seed
    )
    held_out_pixels = images_of([pair.path for pair in held_out], evaluated(preprocess), setup.machine)
    prompts_KPL, label_I = _categories(pairs, held_out, tokenizer, model)
    return Contrastive(
        model=model,
        images=TrainingPairs(images, texts, seed=recipe.seed),
        validation=EvaluationImages(held_out_pixels, range(len(held_out)), preprocess),
        texts=held_out_texts,
        loss=loss,
        batch_size=recipe.batch_size,
        prompts_KPL=prompts_KPL,
        label_I=label_I,
        channels_last=recipe.engine.channels_last,
    )


def _categories(
    pairs: Pairs, held_out: tuple[Pair, ...], tokenizer: Tokenizer, model: CLIP
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Tokens of each category's prompts (K, P, L) and the held-out images' categories (I,), −1 for none."""
    names = pairs.categories
    labels = [names.index(pair.category) if pair.category else -1 for pair in held_out]
    if len(names) < 2 or max(labels) < 0:
        return None, None
    prompts = [Pair(path="", digest="", texts=(name,), split="train", category=None) for name in names]
    tokens_KL = read_texts(prompts, tokenizer, model.config.text).tokens_TL
    if len(tokens_KL) < len(names):
        raise InputError("To this model two categories read the same: name them differently.")
    return tokens_KL[:, None], torch.tensor(labels)


@dataclass
class _Recorder:
    """Writes clip.json whenever the best weights change."""

    setup: ClipSetup
    loss: Loss
    start: str
    pairs: Pairs

    def __call__(self, best: BestWeights) -> None:
        record = ClipRun(
            model=self.setup.model,
            loss=self.loss,
            weights=best.file,
            sha256=best.sha256,
            preprocess=self.setup.preprocess,
            start=self.start,
            recipe=self.setup.recipe.name,
            recipe_digest=self.setup.recipe.digest(),
            pairs=str(self.setup.pairs.absolute()),
            pairs_digest=self.pairs.digest,
            epochs=len(best.progress.history),
            finished=best.finished,
            history=best.progress.history,
            extended=list(best.extended),
        )
        plain = utf8_all(msgspec.to_builtins(record))
        content = msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n"
        store.atomic_write(self.setup.out / RECORD, content)
