"""A stand-in for NVML's Python binding: GPUs that a test describes. nvidia-ml-py itself needs a driver."""

from __future__ import annotations

import os
from types import ModuleType, SimpleNamespace

MIB = 1024 * 1024


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class NVMLError_NoPermission(NVMLError):
    pass


class NVMLError_FunctionNotFound(NVMLError):
    pass


def gpu(name: str = "NVIDIA H100 80GB HBM3", **changes) -> SimpleNamespace:
    """One card; whatever is None is not told by it, and `lost` answers nothing."""
    facts = {
        "name": name,
        "uuid": "GPU-1",
        "capability": (9, 0),
        "memory": 81559,
        "used": 512,
        "power_limit": 700_000,
        "power": 90_000,
        "clock": 1980,
        "reasons": 1,
        "processes": [],
        "lost": False,
        "mig": None,
    }
    return SimpleNamespace(**(facts | changes))


def install(monkeypatch, *cards: SimpleNamespace, driver: str = "580.65.06", error: str = "") -> None:
    """Put it in the place of `pynvml`."""
    module = ModuleType("pynvml")
    open_ = []

    def init() -> None:
        if error:
            raise NVMLError(error)
        open_.append(1)

    def told(read):
        def answer(card, *_):
            assert open_, "asked after it was shut down"
            if card.lost:
                raise NVMLError("GPU is lost")
            value = read(card)
            if value is None:
                raise NVMLError_NotSupported
            if isinstance(value, Exception):
                raise value
            return value

        return answer

    functions = {
        "nvmlInit": init,
        "nvmlShutdown": lambda: open_.pop(),
        "nvmlSystemGetDriverVersion": lambda: driver,
        "nvmlDeviceGetCount": lambda: len(cards),
        "nvmlDeviceGetHandleByIndex": lambda index: cards[index],
        "nvmlDeviceGetUUID": told(lambda card: card.uuid),
        "nvmlDeviceGetName": told(lambda card: card.name),
        "nvmlDeviceGetCudaComputeCapability": told(lambda card: card.capability),
        "nvmlDeviceGetMemoryInfo": told(
            lambda card: SimpleNamespace(total=card.memory * MIB, used=card.used * MIB)
        ),
        "nvmlDeviceGetEnforcedPowerLimit": told(lambda card: card.power_limit),
        "nvmlDeviceGetPowerUsage": told(lambda card: card.power),
        "nvmlDeviceGetMaxClockInfo": told(lambda card: card.clock),
        "nvmlDeviceGetClockInfo": told(lambda card: card.clock),
        "nvmlDeviceGetTemperature": told(lambda card: 40),
        "nvmlDeviceGetMigMode": told(lambda card: card.mig),
        "nvmlDeviceGetCurrentClocksEventReasons": told(lambda card: card.reasons),
        "nvmlDeviceGetComputeRunningProcesses": told(lambda card: card.processes),
    }
    for name, function in functions.items():
        setattr(module, name, function)
    for kind in (NVMLError, NVMLError_NotSupported, NVMLError_NoPermission, NVMLError_FunctionNotFound):
        setattr(module, kind.__name__, kind)
    module.NVML_CLOCK_SM, module.NVML_TEMPERATURE_GPU = 1, 0
    monkeypatch.setitem(__import__("sys").modules, "pynvml", module)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def process(pid: int | None = None, mib: int | None = 100) -> SimpleNamespace:
    """A process that computes on a card; `pid` None: this one."""
    return SimpleNamespace(pid=os.getpid() if pid is None else pid, usedGpuMemory=mib and mib * MIB)
