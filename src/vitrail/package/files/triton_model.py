"""Triton's Python backend: bytes of image files -> the model's input, prepared as `vitrail predict` does.

`photo.*` and `prepared.npy` beside this file are a photo and what it became where the package was written:
a library here that decodes or resizes differently is noticed when the model is loaded.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import triton_python_backend_utils as pb_utils

from vitrail.errors import InputError
from vitrail.images.decode import decode
from vitrail.images.preprocess import prepare_batch, resized_short_side
from vitrail.vocabulary import Preprocess

MOST_LEVELS = 2.0
"""How far a pixel may be from the recorded one, in levels of 255."""


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the configuration, and try the recorded photo."""
        parameters = json.loads(args["model_config"])["parameters"]
        said = {name: value["string_value"] for name, value in parameters.items()}
        self.preprocess = msgspec.json.decode(said["preprocess"], type=Preprocess)
        self.short_side = resized_short_side(self.preprocess)
        self.input, self.output = said["input"], said["output"]
        here = Path(__file__).parent
        (photo,) = here.glob("photo.*")
        levels = self._levels(self._prepared([photo.read_bytes()]), np.load(here / "prepared.npy"))
        if levels > MOST_LEVELS:
            raise pb_utils.TritonModelException(
                f"a recorded photo is prepared differently here, by {levels:.1f} of 255: install the "
                "versions of Pillow and NumPy that the Dockerfile names"
            )

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request: its images, or what is wrong with one of them."""
        return [self._response(request) for request in requests]

    def _response(self, request: Any) -> Any:
        files = pb_utils.get_input_tensor_by_name(request, self.input).as_numpy().reshape(-1)
        try:
            values = self._prepared(list(files))
        except InputError as error:
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            )
        return pb_utils.InferenceResponse([pb_utils.Tensor(self.output, values)])

    def _prepared(self, files: list[bytes]) -> np.ndarray:
        images = [decode(bytes(data), short_side=self.short_side) for data in files]
        return prepare_batch(images, self.preprocess)

    def _levels(self, values: np.ndarray, recorded: np.ndarray) -> float:
        """The largest difference of two inputs of the model, in levels of 255."""
        difference = np.abs(values.astype(np.float64) - recorded)
        if self.preprocess.pixels == "normalised":
            difference *= 255.0 * np.array(self.preprocess.std).reshape(3, 1, 1)
        return float(difference.max())
