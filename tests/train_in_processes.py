"""A small training run for `test_train.py`, to be started as a program: python train_in_processes.py KIND OUT

fsdp     two processes on a CPU under FSDP, which Fabric and torch offer on GPUs only: what keeps them from a
         CPU is stepped over, what they then do is theirs
fsdp-1   the same with one process, where FSDP splits nothing
refused  two processes, of which the first cannot write the metrics of the first epoch
"""

import sys
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training import recipe, run_in, task_of

from vitrail.errors import InputError
from vitrail.learn.launch import launched
from vitrail.learn.run import ReportedByProcessZero, Run
from vitrail.learn.setup import Machine
from vitrail.learn.train import train


class OnCPU(FSDPStrategy):
    """Fabric refuses FSDPStrategy itself on a CPU."""


def sharded(processes: int) -> Fabric:
    begin = FullyShardedDataParallel.__init__

    def on_cpu(self, module, **options):
        begin(self, module, **{**options, "device_id": torch.device("cpu")})

    FullyShardedDataParallel.__init__ = on_cpu
    strategy = OnCPU(state_dict_type="full")
    fabric = Fabric(accelerator="cpu", devices=processes, strategy=strategy, precision="32-true")
    fabric.launch()
    return fabric


def as_on_gpus(optimizer, *_):
    """A fused step on a GPU refuses gradients in another order than their weights'."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            assert weight.grad is None or weight.grad.stride() == weight.stride(), weight.shape


def refuse(self, step, figures):
    raise InputError("No space left on the disk.")


def main(kind: str, out: str) -> int:
    torch.set_num_threads(1)
    plan = recipe()
    if kind.startswith("fsdp"):
        register_optimizer_step_pre_hook(as_on_gpus)
        fabric = sharded(1 if kind == "fsdp-1" else 2)
    else:
        fabric = launched(Machine(processes=2), plan)
        Run._log = refuse
    run = run_in(Path(out), plan, fabric=fabric)
    try:
        train(task_of(plan), plan, run, fabric)
    except ReportedByProcessZero:
        return 0
    except InputError as error:
        print(f"said by {fabric.global_rank}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
