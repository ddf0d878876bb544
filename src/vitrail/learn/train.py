"""The training loop, for classes and for CLIP, from one process to many nodes.

    for each step:
        batch   = which images, by (seed, step); how they are augmented, by (seed, epoch, image)
        loss    = the task's, in the recipe's precision, gradients summed over processes
        stop    unless loss and gradients are finite
        weights = optimizer(gradients), learning rate by the step
        average = decay · average + (1 − decay) · weights
    each epoch: evaluate, keep the best weights; checkpoint

Lightning Fabric places the model, scales fp16 losses and connects processes; nothing else is hidden. What a
run leaves on disk is in run.py, what is learned in classify.py and pairs.py, the order of images in order.py.

A run that is killed and started again ends with the same bits on a CPU: no generator's state is kept,
because every step derives its randomness from (seed, step).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import FSDPStrategy
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.optim.muon import Muon
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader

from vitrail.errors import InputError
from vitrail.learn.finite import origin
from vitrail.learn.order import Steps, seed_of
from vitrail.learn.progress import Progress
from vitrail.learn.recipe import Recipe
from vitrail.learn.run import Run
from vitrail.profiling.malloc import freed_memory_kept

__all__ = ["LabelledTraining", "TrainingTask", "train"]

SKIPPED_AT_MOST = 20
"""Steps in a row that fp16's scaler may skip; each time it halves the loss's scale, from 65,536."""
TABLES = (
    "*head.*",
    "*classifier.*",
    "*token_embedding.*",
    "*positional_embedding",
    "*pos_embed",
    "*cls_token",
    "*mask_tokens.*",
    "*rel_pos_?",
)
"""What Muon leaves to AdamW besides vectors: lookup tables and classifiers (Jordan 2024)."""

KEPT = (
    "The last checkpoint and the best weights are kept: lower --learning-rate, clip with --set "
    "optimizer.clip_norm=1, or use --precision fp32, with a new --out."
)


class TrainingTask(Protocol):
    """What is learned: a model, its images, a loss, and a figure for how well it does."""

    model: nn.Module
    images: Any
    """A Dataset: (epoch, index) -> one example; len() of them."""
    figure: str
    """The figure of `evaluate` that decides which weights are best, in %; higher is better."""

    def backward(self, fabric: Fabric, model: nn.Module, parts: Sequence[Any]) -> Tensor:
        """Add the gradients of one batch, given in parts, to the model's; the loss, a scalar."""
        ...

    def evaluate(self, fabric: Fabric, model: nn.Module) -> dict[str, float]:
        """Figures on the validation data; every process calls it and gets the same."""
        ...


class LabelledTraining(TrainingTask, Protocol):
    """A task whose loss is a cross-entropy over classes, so that a guess has one too."""

    guess: float | None
    """Loss of a model that only knows how common each class is; None: all are equally common."""


@freed_memory_kept()
def train(task: TrainingTask, recipe: Recipe, run: Run, fabric: Fabric, *, workers: int = 0) -> Progress:
    """Train until the recipe's last epoch, or until the validation figure has not improved for long enough.

    Resumes from the run's last checkpoint if there is one. An extension starts from the end of the run with
    all of its state, and with its own schedule (`Recipe.learning_rate_at`). Every process calls it.

    Args:
        task: holds the model, in fp32 with its starting weights.
        recipe: its `batch_size` spans all processes.
        run: the folder for checkpoints, metrics and the best weights.
        fabric: launched, with the recipe's precision.
        workers: processes that prepare images; 0: this one does.

    Raises:
        InputError: the loss, a gradient or a figure is not finite, a checkpoint is damaged, memory or disk
            are full. What was saved before is kept.
    """
    steps = Steps(
        images=len(task.images),
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        seed=recipe.seed,
        parts=recipe.engine.accumulate,
        rank=fabric.global_rank,
        processes=fabric.world_size,
    )
    # FSDP without shards (one process) gives such weights gradients in another order than theirs.
    if recipe.engine.channels_last and not isinstance(fabric.strategy, FSDPStrategy):
        task.model.to(memory_format=torch.channels_last)
    compiled: Any = torch.compile(task.model) if recipe.engine.compile else task.model
    model, optimizer = fabric.setup(compiled, optimizer_of(parameter_groups(task.model, recipe), recipe))
    average = ema(task.model, recipe)
    progress, scaler = Progress(), fabric.strategy.precision
    state: dict[str, Any] = {"model": model, "optimizer": optimizer}
    if average is not None:
        state["average"] = average.module
    state |= {"progress": asdict(progress), "scaler": scaler.state_dict()}
    if run.restore(state):
        progress = Progress(**state["progress"])
        scaler.load_state_dict(state["scaler"])
        if not run.has(progress.best_file):
            progress.best = -math.inf

    loader = DataLoader(
        task.images, batch_sampler=steps.starting(progress.step), num_workers=workers, pin_memory=False
    )
    parts = iter(fabric.setup_dataloaders(loader, use_distributed_sampler=False))
    run.begin(progress, steps)
    model.train()
    skipped, begun = 0, run.request.extended[-1].ended if run.request.extended else 0
    while progress.step < steps.total and not _patience_is_over(progress, recipe, steps, begun):
        begin = time.perf_counter()
        rate = recipe.learning_rate_at(progress.step, steps.per_epoch, run.request.extended)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        batch = [next(parts) for _ in range(steps.parts)]

        seed = seed_of(recipe.seed, "step", progress.step, fabric.global_rank)
        torch.manual_seed(seed)
        with _enough_memory(recipe):
            loss = task.backward(fabric, model, batch)
        loss = mean_over_processes(fabric, loss)
        norm = fabric.clip_gradients(
            model, optimizer, max_norm=recipe.optimizer.clip_norm or math.inf, error_if_nonfinite=False
        )
        assert norm is not None
        # An fp16 step may overflow: its scaler leaves the weights alone and tries a smaller scale.
        skipped = skipped + 1 if recipe.engine.precision == "fp16" and not math.isfinite(float(norm)) else 0
        again = partial(_step_of_the_plain_model, task, fabric, batch, seed)
        _refuse_what_is_not_finite(task, progress, steps, loss, norm, again, 0 < skipped <= SKIPPED_AT_MOST)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average is not None:
            average.update(task.model, step=progress.step + 1)

        progress.step += 1
        progress.loss_sum += float(loss)
        progress.seconds += time.perf_counter() - begin
        run.after_step(progress, loss=float(loss), rate=rate, gradient_norm=float(norm))
        if progress.step % steps.per_epoch == 0:
            _end_epoch(task, model, average, run, fabric, progress, steps, rate)
        if run.checkpoint_is_due(progress, steps):
            state |= {"progress": asdict(progress), "scaler": scaler.state_dict()}
            run.checkpoint(state)
    run.finish(progress)
    return progress


def _step_of_the_plain_model(task: TrainingTask, fabric: Fabric, batch: Sequence[Any], seed: int) -> None:
    torch.manual_seed(seed)
    with fabric.autocast():
        task.backward(fabric, task.model, batch)


@contextmanager
def _enough_memory(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU allocator has no class of its own
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise InputError(
            f"{recipe.batch_size} images in {recipe.engine.accumulate} parts do not fit in memory: "
            f"give --set engine.accumulate={2 * recipe.engine.accumulate} or a smaller --batch-size, "
            "and a new --out."
        ) from None


def _end_epoch(
    task: TrainingTask,
    model: Any,
    average: ModelEmaV3 | None,
    run: Run,
    fabric: Fabric,
    progress: Progress,
    steps: Steps,
    rate: float,
) -> None:
    begin = time.perf_counter()
    sharded = isinstance(fabric.strategy, FSDPStrategy)
    # Elsewhere the wrappers would only be compiled again for other batch sizes.
    evaluated = model if sharded else task.model if average is None else average.module
    _share_statistics(fabric, evaluated)
    evaluated.eval()
    with torch.no_grad():
        figures = task.evaluate(fabric, evaluated)
    task.model.train()
    model.train()
    progress.seconds += time.perf_counter() - begin
    figures = {
        "epoch": progress.step // steps.per_epoch,
        "step": progress.step,
        "seconds": progress.seconds,
        "learning_rate": rate,
        "train_loss": progress.loss_sum / steps.per_epoch,
        **figures,
    }
    wrong = [f"{name} is {value}" for name, value in figures.items() if not math.isfinite(value)]
    if wrong:
        raise InputError(f"Training stopped after epoch {figures['epoch']:.0f}: {', '.join(wrong)}. {KEPT}")
    progress.loss_sum = 0.0
    progress.history.append(figures)
    better = figures[task.figure] > progress.best
    if better:
        progress.best, progress.best_epoch = figures[task.figure], progress.step // steps.per_epoch
    weights = partial(_whole_weights, model) if sharded else evaluated.state_dict
    run.after_epoch(progress, weights, figures, better=better)


def _share_statistics(fabric: Fabric, model: nn.Module) -> None:
    """Send process 0's batch norm statistics to all processes: its weights are the ones kept."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def _whole_weights(model: Any) -> dict[str, Tensor]:
    """The weights held by the processes, gathered in process 0; every process calls this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: Any = get_model_state_dict(model._forward_module, options=options)
    return dict(state)


def _patience_is_over(progress: Progress, recipe: Recipe, steps: Steps, begun: int) -> bool:
    """`begun`: epochs before the last extension, which has as much patience as a new run."""
    epochs = progress.step / steps.per_epoch
    return recipe.patience is not None and epochs - max(begun, progress.best_epoch) >= recipe.patience


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """timm's groups: no decay for vectors and what the model names, a rate for each layer."""
    o = recipe.optimizer
    named: set[str] = getattr(model, "no_weight_decay", set)()
    more: dict[str, Any] = {"no_weight_decay_list": named}
    if o.name == "muon":
        more |= {"fallback_list": TABLES, "fallback_no_weight_decay": True}
    groups: list[dict[str, Any]]
    if o.layer_decay < 1:
        groups = param_groups_layer_decay(model, o.weight_decay, layer_decay=o.layer_decay, **more)
    else:
        groups = param_groups_weight_decay(model, o.weight_decay, **more)
    return groups


def optimizer_of(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), SGD with Nesterov's momentum, or timm's Muon: updates as large as
    AdamW's (Liu et al. 2025, arXiv:2502.16982), and AdamW for all but matrices between features."""
    # A fused step would unscale fp16's gradients itself, but they have to be clipped first.
    fused = recipe.engine.precision != "fp16"
    o = recipe.optimizer
    if o.name == "muon":
        return Muon(groups, lr=recipe.learning_rate(), betas=o.betas, nesterov=True)
    if o.name == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate(), momentum=o.betas[0], nesterov=True)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate(), betas=o.betas, fused=fused)


def ema(model: nn.Module, recipe: Recipe) -> ModelEmaV3 | None:
    """timm's average of the weights; its decay grows to the recipe's over the first steps."""
    decay = recipe.regularization.average_decay
    if decay is None:
        return None
    return ModelEmaV3(model, decay=decay, use_warmup=True, warmup_gamma=1.0, warmup_power=0.75)


def mean_over_processes(fabric: Fabric, value: Tensor) -> Tensor:
    """The same scalar in every process."""
    mean = fabric.all_reduce(value.detach(), reduce_op="mean")
    assert isinstance(mean, Tensor)
    return mean


def _refuse_what_is_not_finite(
    task: TrainingTask,
    progress: Progress,
    steps: Steps,
    loss: Tensor,
    norm: Tensor,
    again: Callable[[], Any],
    skips: bool,
) -> None:
    """Stop before the weights are touched; `skips`: any gradients are allowed."""
    if math.isfinite(float(loss)) and (skips or math.isfinite(float(norm))):
        return
    epoch, step = divmod(progress.step, steps.per_epoch)
    what = f"the loss is {float(loss)}" if not math.isfinite(float(loss)) else "the gradients overflow"
    raise InputError(
        f"Training stopped in epoch {epoch + 1}, step {step + 1} of {steps.per_epoch}: {what} "
        f"({origin(task.model, again)}). {KEPT}"
    )
