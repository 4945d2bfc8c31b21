"""A bundle's graph as a model of Triton's Python backend: what `pgsr-export triton --backend python` names.

The model's folder of a version holds the bundle's manifest and the graph that config.pbtxt's parameters name.
What runs it is the parameter "backend", any of pgsr.runtime.backends.BACKENDS, on Triton's device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgsr import bundle as bundles
from pgsr.errors import PgsrError

from .backends import open_runner


class TritonPythonModel:
    """The class that Triton's Python backend looks for in model.py."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Opens the graph. Raises PgsrError, which Triton shows, if it or its backend cannot be used."""
        config = json.loads(args["model_config"])
        told = {name: value["string_value"] for name, value in config["parameters"].items()}
        bundle = bundles.read(Path(args["model_repository"]) / args["model_version"])
        graph = bundle.graph(told["graph"], told["precision"])
        gpu = args["model_instance_kind"] == "GPU"
        self._source, self._result = graph.inputs[0].name, graph.outputs[0].name
        self._runner = open_runner(
            bundle,
            device=f"cuda:{args['model_instance_device_id']}" if gpu else "cpu",
            precision=graph.precision,
            backend=told["backend"],
            graph=graph.name,
            batch=max(1, int(config["max_batch_size"])),
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Runs the requests that Triton has put together as one batch; one response each."""
        import triton_python_backend_utils as triton  # there is one inside Triton alone

        values = [triton.get_input_tensor_by_name(request, self._source).as_numpy() for request in requests]
        try:
            results = self._runner.run(np.concatenate(values))
        except PgsrError as error:
            return [triton.InferenceResponse(error=triton.TritonError(str(error))) for _ in requests]
        ends = np.cumsum([len(value) for value in values])
        parts = np.split(results, ends[:-1])
        return [triton.InferenceResponse([triton.Tensor(self._result, part)]) for part in parts]

    def finalize(self) -> None:
        """Closes the graph."""
        self._runner.__exit__(None, None, None)
