"""The sections of gpu.py that compute in their own process: attention, models, parity, compiled code.

Shapes: B batch, H heads, N tokens, d head width, D = H · d.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from gpu_timing import (
    MIB,
    Contender,
    Setting,
    amp,
    apart,
    clocks,
    in_turns,
    kernels,
    peak_mib,
    product_error,
    synchronize,
    tf32,
)
from torch import Tensor, distributed, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from vitrail import models
from vitrail.learn.losses import clip_loss, siglip_loss
from vitrail.models.attention import attend

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
ROWS = 128
"""Queries of each head of the first sequence that are computed in float64 as well."""
SWIN, VIT = "swin_base_patch4_window7_224", "vit_base_patch16_224"
SMALL_SWIN, SMALL_VIT = "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"
PRECISIONS = ("fp32", "tf32", "amp fp16", "amp bf16")
PARITY = {
    SMALL_SWIN: None,
    "swinv2_tiny_window8_256": None,
    "vit_small_patch14_dinov2": 224,
    "vit_small_patch14_reg4_dinov2": 224,
    VIT: None,
    "deit3_base_patch16_224": None,
    "vit_base_patch32_clip_224": None,
    "vit_base_patch16_siglip_224": None,
    SWIN: None,
}
"""timm's name -> image size; None: its own. The largest are last."""
SMALL_PARITY = {SMALL_VIT: None, "deit3_small_patch16_224": None, SMALL_SWIN: 112}
BOUNDS = {"float64": 1e-9, "fp32": 1e-5}


# --- attention ------------------------------------------------------------------------------------


def attention(here: Setting) -> None:
    """The article's table, and which kernel our function launches at each of its lengths."""
    here.environment()
    lengths, batch, heads = ((64, 128), 1, 2) if here.small else ((1024, 4096, 8192), 8, 12)
    dtypes = ("fp32", "bf16") if here.small else tuple(DTYPES)
    tf32(False)
    for precision in dtypes:
        for tokens in lengths:
            shape = (batch, heads, tokens, 64)
            what = {"precision": precision, "tokens": tokens}
            for backward in (False, True) if precision == "fp16" or here.small else (False,):
                with here.part(kind="attention", backward=backward, **what):
                    _table(here, shape, precision, backward)
    here.row(kind="clocks", **clocks())
    for precision in dtypes:
        for tokens in lengths:
            with here.part(kind="reaches", precision=precision, tokens=tokens):
                _reaches(here, (batch, heads, tokens, 64), precision)


def _inputs(shape: tuple[int, ...], precision: str, device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(shape[2])
    q, k, v = (
        torch.randn(shape, generator=generator, device=device, dtype=DTYPES[precision]) for _ in range(3)
    )
    return q, k, v


def _reaches(here: Setting, shape: tuple[int, ...], precision: str) -> None:
    """Names of the kernels that run, for tensors in the order of their shape and for the views of a ViT."""
    batch, heads, tokens, width = shape
    packed = torch.randn(batch, tokens, 3, heads, width, device=here.device, dtype=DTYPES[precision])
    layouts = {
        "contiguous": _inputs(shape, precision, here.device),
        "as in our ViT": packed.permute(2, 0, 3, 1, 4).unbind(0),
    }
    for layout, (q, k, v) in layouts.items():
        for kernel in ("auto", "flash"):
            what: dict[str, Any] = {"tokens": tokens, "precision": precision, "layout": layout}
            with here.part(kind="reaches", kernel=kernel, **what), torch.no_grad():
                launched = kernels(Contender(partial(attend, q, k, v, kernel=kernel)), here.device)
                names = [name for name, _ in sorted(launched, key=lambda one: -one[1])]
                reached = family(names)
                here.row(
                    kind="reaches",
                    kernel=kernel,
                    **what,
                    reached=reached,
                    torch_chooses=int(torch._fused_sdp_choice(q, k, v)),
                    launched=[name[:120] for name in names[:4]],
                    said=f"{precision} {tokens:>5} tokens, {layout}: attend(kernel={kernel!r}) → {reached}",
                )


def family(names: list[str]) -> str:
    """Which attention these kernels are."""
    text = " ".join(names).lower()
    signs = {"cudnn": ("cudnn",), "flash": ("flash",), "efficient": ("fmha", "efficient")}
    for kind, words in signs.items():
        if any(word in text for word in words):
            return kind
    return "scores written out" if "softmax" in text else "unknown"


def _table(here: Setting, shape: tuple[int, ...], precision: str, backward: bool) -> None:
    batch, heads, tokens, _ = shape
    q, k, v = _inputs(shape, precision, here.device)
    if backward:
        for tensor in (q, k, v):
            tensor.requires_grad_()
    upstream = torch.ones_like(q) if backward else None

    def called(function: Callable[..., Tensor]) -> Tensor:
        with torch.set_grad_enabled(backward):
            for tensor in (q, k, v):
                tensor.grad = None
            out = function(q, k, v)
            if backward:
                out.backward(upstream)
            return out.detach()

    contenders = {"ours": Contender(partial(called, attend))}
    contenders |= {
        name: Contender(partial(called, scaled_dot_product_attention), partial(sdpa_kernel, backend))
        for name, backend in BACKENDS.items()
    }
    what: dict[str, Any] = {"kind": "attention", "precision": precision, "tokens": tokens}
    what["backward"] = backward
    matrix = batch * heads * tokens**2 * q.element_size() * (3 if backward else 2)
    if not here.gpu or matrix < 0.85 * torch.cuda.mem_get_info(here.device)[0]:
        contenders["naive"] = Contender(partial(called, partial(attend, kernel="naive")))
    else:
        here.row(**what, kernel="naive", skipped=f"its scores take {matrix / MIB / 1024:.0f} GiB")
    facts = {}
    for name in list(contenders):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                facts[name] = _facts(contenders[name], (q, k, v), here.device)
            except RuntimeError as error:
                del contenders[name]
                reasons = [str(warning.message).split(" (Triggered")[0] for warning in caught]
                here.row(**what, kernel=name, unavailable=[str(error)[:200], *reasons][:6])
    seconds = 0.1 if here.small else 0.5
    for name, timing in in_turns(contenders, here.device, seconds).items():
        here.row(**what, kernel=name, **timing, **facts[name], said=_line(what, name, timing, facts[name]))


def _facts(contender: Contender, qkv: tuple[Tensor, Tensor, Tensor], device: str) -> dict[str, Any]:
    """Peak memory of a call, and its error against float64 in some rows."""
    for tensor in qkv:  # gradients of an earlier contender would count as there before the call
        tensor.grad = None
    peak = peak_mib(contender, device)
    with contender.context():
        out_BHNd = contender.call()
    assert isinstance(out_BHNd, Tensor)
    q_HNd, k_HNd, v_HNd = (t[0].detach().double() for t in qkv)
    rows = torch.linspace(0, q_HNd.shape[1] - 1, min(ROWS, q_HNd.shape[1]), device=device).long()
    scores_HRN = q_HNd[:, rows] @ k_HNd.transpose(1, 2) * q_HNd.shape[-1] ** -0.5
    return {"peak_mib": peak, "error": apart(out_BHNd[0][:, rows], scores_HRN.softmax(-1) @ v_HNd)}


def _line(what: dict[str, Any], name: str, timing: dict[str, Any], facts: dict[str, Any]) -> str:
    passes = "and back" if what["backward"] else "forward"
    if "error" in timing:
        return f"{what['precision']} {what['tokens']:>5} tokens {passes} {name}: {timing['error']}"
    peak = "" if facts["peak_mib"] is None else f", {facts['peak_mib']:.0f} MiB"
    return (
        f"{what['precision']} {what['tokens']:>5} tokens {passes} {name:<9} {timing['ms']:9.3f} ms{peak}, "
        f"error {facts['error']:.1e}"
    )


# --- models ---------------------------------------------------------------------------------------


def pair(name: str, size: int | None, device: str) -> tuple[nn.Module, nn.Module]:
    """timm's model and ours with the same random values, in float64; norms and biases are random too.

    Both are made on the device: a CPU that other sections use is slow to make so many random values.
    """
    torch.manual_seed(0)
    with torch.device(device):
        theirs = timm.create_model(name, **({} if size is None else {"img_size": size})).double().eval()
        with torch.no_grad():
            for key, value in theirs.named_parameters():
                if key.endswith("gamma"):
                    value.copy_(0.2 * torch.randn_like(value))
                elif value.ndim < 2 and "logit_scale" not in key:
                    value.add_(0.2 * torch.randn_like(value))
        ours = models.build(name, image_size=size, num_classes=theirs.num_classes).double()
    models.load_weights(ours, {key: value.cpu() for key, value in theirs.state_dict().items()})
    return theirs.requires_grad_(False), ours.requires_grad_(False)


def swin(here: Setting) -> None:
    """Swin-B, batch 32, timm's and ours in turns, in each precision."""
    here.environment()
    name, batch, size = (SMALL_SWIN, 1, 112) if here.small else (SWIN, 32, 224)
    theirs, ours = (model.float() for model in pair(name, size, here.device))
    images = _images(batch, size, here.device)
    for precision in PRECISIONS if here.gpu else ("fp32", "amp bf16"):
        with here.part(kind="swin", precision=precision):
            tf32(precision == "tf32")
            context = amp(precision, here.device)
            contenders = {
                "timm": Contender(_inferring(theirs, images), context),
                "ours": Contender(_inferring(ours, images), context),
            }
            out = {}
            for who, contender in contenders.items():
                with contender.context():
                    out[who] = contender.call()
            times = in_turns(contenders, here.device, 0.2 if here.small else 1.5)
            after = clocks()
            row: dict[str, Any] = {"kind": "swin", "model": name, "batch": batch, "precision": precision}
            for who, contender in contenders.items():
                launched = kernels(contender, here.device)
                row[who] = {
                    **times[who],
                    "images_per_s": 1e3 * batch / times[who]["ms"],
                    "peak_mib": peak_mib(contender, here.device),
                    "launches": len(launched),
                    "busy_ms": sum(us for _, us in launched) / 1e3,
                    "most_time": _most_time(launched),
                }
            ratio = times["ours"]["ms"] / times["timm"]["ms"]
            here.row(
                **row,
                ours_over_timm=ratio,
                difference=apart(out["ours"], out["timm"]),
                product_error=product_error(here.device),
                clocks=after,
                said=f"{name} batch {batch} {precision}: timm {times['timm']['ms']:.2f} ms, "
                f"ours {times['ours']['ms']:.2f} ms, ours / timm {ratio:.3f}",
            )


def _most_time(launched: list[tuple[str, float]]) -> list[list[Any]]:
    """The ten names that take longest: name, launches, milliseconds."""
    by_name: dict[str, list[float]] = {}
    for name, us in launched:
        by_name.setdefault(name[:90], []).append(us)
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:10]
    return [[name, len(times), round(sum(times) / 1e3, 3)] for name, times in longest]


def _images(batch: int, size: int, device: str) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)


def _inferring(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            out: Tensor = model(images)
        return out

    return call


def growth(here: Setting) -> None:
    """ViT-B/16 against Swin-B as the image grows; ViT also with its attention written out."""
    here.environment()
    tf32(False)
    sizes, batches = ((112,), (1,)) if here.small else ((224, 512, 1024), (1, 4))
    vit, small = (SMALL_VIT, SMALL_SWIN) if here.small else (VIT, SWIN)
    for size in reversed(sizes):  # the largest first: it is what was asked for
        built: dict[str, nn.Module] = {}
        for who, name, more in (
            ("ViT", vit, {}),
            ("Swin", small, {}),
            ("ViT naive", vit, {"attention": "naive"}),
        ):
            with here.part(kind="growth", model=who, size=size), torch.device(here.device):
                warnings.simplefilter("ignore")  # that accuracy falls at other sizes
                built[who] = models.build(name, image_size=size, **more).requires_grad_(False)
        for batch in batches:
            for precision in ("fp32", "amp bf16"):
                with here.part(kind="growth", size=size, batch=batch, precision=precision):
                    _grown(here, built, size, batch, precision)
    here.row(kind="clocks", **clocks())


def _grown(here: Setting, built: dict[str, nn.Module], size: int, batch: int, precision: str) -> None:
    images, context = _images(batch, size, here.device), amp(precision, here.device)
    contenders = {who: Contender(_inferring(model, images), context) for who, model in built.items()}
    for who, timing in in_turns(contenders, here.device, 0.1 if here.small else 0.5).items():
        what: dict[str, Any] = {"model": who, "size": size, "batch": batch, "precision": precision}
        if "error" in timing:
            here.row(kind="growth", **what, **timing)
            continue
        peak = peak_mib(contenders[who], here.device)
        said = f"{who:<9} {size:>4} px batch {batch} {precision:<8} {timing['ms']:8.2f} ms"
        here.row(
            kind="growth",
            **what,
            **timing,
            peak_mib=peak,
            said=said if peak is None else f"{said}, {peak:.0f} MiB",
        )


# --- parity ---------------------------------------------------------------------------------------


def parity(here: Setting) -> None:
    """Our forward passes against timm's, and the losses that gather over processes against those of one."""
    here.environment()
    tf32(False)
    with here.part(kind="losses"):
        _losses(here)
    for name, size in (SMALL_PARITY if here.small else PARITY).items():
        with here.part(kind="parity", model=name):
            _parity(here, name, size)


def _parity(here: Setting, name: str, size: int | None) -> None:
    theirs, ours = pair(name, size, here.device)
    images = _images(2, size or theirs.default_cfg["input_size"][-1], here.device).double()
    found: dict[str, Any] = {}
    exact, mine = _both(theirs, ours, images)
    found["float64"] = apart(mine, exact)
    theirs, ours, images = theirs.float(), ours.float(), images.float()
    their_fp32, our_fp32 = _both(theirs, ours, images)
    found["fp32"] = apart(our_fp32, their_fp32)
    found["fp32_against_float64"] = {
        "timm": apart(their_fp32, exact),
        "ours": apart(our_fp32, exact),
    }
    for precision in ("amp fp16", "amp bf16") if here.gpu else ("amp bf16",):
        with amp(precision, here.device)():
            their_amp, our_amp = _both(theirs, ours, images)
        found[f"{precision} against fp32"] = {
            "timm": apart(their_amp, their_fp32),
            "ours": apart(our_amp, our_fp32),
        }
    held = all(found[precision] <= bound for precision, bound in BOUNDS.items())
    here.row(
        kind="parity",
        model=name,
        size=size,
        **found,
        bounds=BOUNDS,
        held=held,
        spread=float(exact.std()),
        said=f"{name}: float64 {found['float64']:.1e}, fp32 {found['fp32']:.1e}{'' if held else '  MISSED'}",
    )


def _both(theirs: nn.Module, ours: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return theirs(images), ours(images)


def _losses(here: Setting) -> None:
    """Values and gradients with a group of one process, over NCCL or gloo, and with none."""
    backend = "nccl" if here.gpu else "gloo"
    if here.gpu:
        torch.cuda.set_device(torch.device(here.device).index or 0)
    distributed.init_process_group(
        backend, init_method=f"file://{here.folder}/losses-{backend}", rank=0, world_size=1
    )
    try:
        generator = torch.Generator().manual_seed(0)
        start = [nn.functional.normalize(torch.randn(64, 32, generator=generator), dim=-1) for _ in range(2)]
        for name, loss_of in (
            ("clip", lambda one, other, group: clip_loss(one, other, 10.0, group=group)),
            ("siglip", lambda one, other, group: siglip_loss(one, other, 10.0, -10.0, group=group)),
        ):
            values = []
            for group in (None, distributed.group.WORLD):
                pairs = [tensor.clone().to(here.device).requires_grad_() for tensor in start]
                loss = loss_of(*pairs, group)
                loss.backward()
                values.append((loss.detach(), [tensor.grad for tensor in pairs]))
            (alone, by_one), (gathered, by_group) = values
            worst = max(apart(a, b) for a, b in zip(by_group, by_one, strict=True))
            here.row(
                kind="losses",
                loss=name,
                backend=backend,
                difference=float((gathered - alone).abs() / alone.abs()),
                gradient_difference=worst,
                said=f"{name} loss over {backend}: gradients differ by {worst:.1e}",
            )
    finally:
        distributed.destroy_process_group()


# --- compiled -------------------------------------------------------------------------------------


def compiled(here: Setting, who: str) -> None:
    """One implementation of Swin-B under torch.compile: its first calls, then, once it is quiet, its time."""
    here.environment()
    name, batch = (SMALL_VIT, 1) if here.small else (SWIN, 32)
    theirs, ours = pair(name, None, here.device)
    model = (ours if who == "ours" else theirs).float()
    images, context = (
        _images(batch, 224, here.device),
        amp("amp fp16" if here.gpu else "amp bf16", here.device),
    )
    eager = Contender(_inferring(model, images), context)
    with context():
        expected = eager.call()
    # On a CPU the compiler would take minutes: there it is only seen that this runs.
    modes: dict[str, dict[str, Any]] = {"default": {}, "reduce-overhead": {"mode": "reduce-overhead"}}
    if not here.gpu:
        modes = {"without inductor": {"backend": "eager"}}
    contenders: dict[str, Contender] = {}
    taken: dict[str, dict[str, Any]] = {}
    for mode, options in modes.items():
        longest = max((seconds["two_calls_s"] for seconds in taken.values()), default=0.0)
        if here.left_s < longest:
            here.row(kind="compiled", who=who, mode=mode, skipped=f"{here.left_s:.0f} s were left")
            continue
        with here.part(kind="compiled", who=who, mode=mode):
            begin = time.perf_counter()
            call = _inferring(torch.compile(copy.deepcopy(model), **options), images)
            with context():
                out = call().clone()
                synchronize(here.device)
            first_s = time.perf_counter() - begin
            with context():  # in which CUDA graphs are recorded
                call()
                synchronize(here.device)
            seconds = time.perf_counter() - begin
            taken[mode] = {
                "first_call_s": first_s,
                "two_calls_s": seconds,
                "difference": apart(out, expected),
            }
            contenders[mode] = Contender(call, context)
            here.row(kind="compiling", who=who, mode=mode, **taken[mode])
    here.row(ready=True)
    quiet = Path(here.folder) / ("compiled.quiet" if who == "ours" else f"compiled-{who}.quiet")
    while not quiet.exists():
        time.sleep(0.05)
    times = in_turns({"eager": eager, **contenders}, here.device, 0.2 if here.small else 1.5)
    for mode, timing in times.items():
        if "error" in timing:
            here.row(kind="compiled", who=who, mode=mode, **timing)
            continue
        known = taken.get(mode, {})
        compiling = f", compiled in {known['two_calls_s']:.0f} s beside other work" if known else ""
        here.row(
            kind="compiled",
            who=who,
            model=name,
            batch=batch,
            mode=mode,
            **timing,
            **known,
            peak_mib=peak_mib(contenders.get(mode, eager), here.device),
            clocks=clocks(),
            said=f"{who} {name} batch {batch} AMP {mode}: {timing['ms']:.2f} ms{compiling}",
        )
