"""Triton's Python backend draws the latents of faces: (seed, index) -> float32 [L]. Needs numpy alone.

Beside this file in the model repository lie draws.py and sphere.py, copies of pgsr's, which say how they are
drawn (contract 3) and turned, and truncation.json if the bundle truncates. Triton imports this file; nothing
of pgsr does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

sys.path.insert(0, str(Path(__file__).parent))
import draws
import sphere


class TritonPythonModel:
    """The model: its inputs are uint64 [N, 1] each."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Reads from the model's config what the latents are called and how long they are."""
        (output,) = json.loads(args["model_config"])["output"]
        self._name = output["name"]
        self._size = int(output["dims"][0])
        path = Path(__file__).with_name("truncation.json")
        self._truncation = json.loads(path.read_text()) if path.exists() else None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request."""
        return [triton.InferenceResponse([self._drawn(request)]) for request in requests]

    def _drawn(self, request: Any) -> Any:
        seeds, indices = (
            triton.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)
            for name in ("seed", "index")
        )
        latents = np.empty((len(seeds), self._size), dtype=np.float32)
        for seed in np.unique(seeds):
            rows = seeds == seed
            latents[rows] = draws.latents(int(seed), indices[rows].tolist(), self._size)
        if self._truncation is not None:
            centre = np.array(self._truncation["centre"])
            latents = sphere.toward(latents, centre, self._truncation["truncation"])
        return triton.Tensor(self._name, latents)
