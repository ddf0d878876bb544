"""Arrays on an NVIDIA GPU through CUDA's runtime: memory taken once, copies on one stream, no torch.

`cuda-bindings` is NVIDIA's own binding of the C functions, one to one; it needs NumPy no more than the arrays
here do (docs/decisions/tensorrt.md says why not CuPy).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np

from vitrail.errors import InputError, MissingExtraError
from vitrail.vocabulary import TensorSpec

__all__ = ["DeviceArrays"]

INSTALL = 'pip install "vitrail[tensorrt]"'
FULL = "cudaErrorMemoryAllocation"


class DeviceArrays:
    """A stream, and for each tensor memory on the GPU and pinned memory beside it.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        InputError: CUDA refuses, e.g. for lack of memory.
    """

    def __init__(self, number: int, device: str) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError:
            raise MissingExtraError("cuda-bindings, which copies to and from the GPU,", INSTALL) from None
        self._cuda, self._device = runtime, device
        self._memory: dict[str, tuple[int, int, np.ndarray]] = {}
        """tensor -> (address on the GPU, address here, the array there)."""
        self._checked(runtime.cudaSetDevice(number))
        self._stream = self._checked(runtime.cudaStreamCreate())

    @property
    def stream(self) -> int:
        """Its handle, as engines take it."""
        return int(self._stream)

    def take(self, specs: Iterable[TensorSpec]) -> None:
        """Memory for these tensors, whose sizes are numbers."""
        for spec in specs:
            shape, kind = tuple(int(side) for side in spec.shape), np.dtype(spec.dtype)
            size = max(int(np.prod(shape, dtype=np.int64)) * kind.itemsize, 1)
            there = int(self._checked(self._cuda.cudaMalloc(size)))
            self._memory[spec.name] = (there, 0, np.empty(0))
            here = int(self._checked(self._cuda.cudaMallocHost(size)))
            view = np.ndarray(shape, kind, memoryview((ctypes.c_char * size).from_address(here)))
            self._memory[spec.name] = (there, here, view)

    def address(self, name: str) -> int:
        """Where a tensor is on the GPU."""
        return self._memory[name][0]

    def put(self, name: str, values: np.ndarray) -> None:
        """Begin to copy values of exactly the tensor's shape to the GPU."""
        there, here, view = self._memory[name]
        np.copyto(view, values, casting="no")
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._checked(self._cuda.cudaMemcpyAsync(there, here, view.nbytes, kind, self._stream))

    def fetch(self, name: str) -> None:
        """Begin to copy a tensor from the GPU."""
        there, here, view = self._memory[name]
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._checked(self._cuda.cudaMemcpyAsync(here, there, view.nbytes, kind, self._stream))

    def wait(self) -> None:
        """Until all that was begun is done."""
        self._checked(self._cuda.cudaStreamSynchronize(self._stream))

    def copied(self, name: str) -> np.ndarray:
        """What `fetch` brought, as an array of its own."""
        return self._memory[name][2].copy()

    def close(self) -> None:
        """Give all of it back; what CUDA says to that changes nothing any more."""
        with suppress(InputError):
            for there, here, _ in self._memory.values():
                self._checked(self._cuda.cudaFree(there))
                if here:
                    self._checked(self._cuda.cudaFreeHost(here))
            self._checked(self._cuda.cudaStreamDestroy(self._stream))
        self._memory.clear()

    def _checked(self, answer: Any) -> Any:
        """A call's result without its error code.

        Raises:
            InputError: the code is not success.
        """
        error, *results = answer
        if int(error) == 0:
            return results[0] if results else None
        name = getattr(error, "name", str(error))
        if name == FULL:
            raise InputError(
                f"{self._device} has too little memory left ({name}): end what else uses it, or ask for a "
                "smaller batch or image."
            )
        raise InputError(f"CUDA refused on {self._device} ({name}): see `nvidia-smi`, and start again.")
