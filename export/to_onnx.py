"""A module -> the bytes of one ONNX file: nothing outside it, no path of this machine, the same each time."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import Tensor, nn

from pgsr import __version__
from pgsr.errors import PgsrError

OPSET = 20  # the newest that both ONNX Runtime and TensorRT 10 read


def to_onnx(
    module: nn.Module,
    example: Tensor,  # an input of at least two images
    input_name: str,
    output_name: str,
    dynamic: dict[int, str],  # dimensions of the input that may change, by name
) -> bytes:
    """Raises PgsrError if the exporter or the checker refuses the module."""
    shapes = {d: torch.export.Dim(name) for d, name in dynamic.items()}
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[input_name],
                output_names=[output_name],
                dynamic_shapes=(shapes,),
                external_data=False,
            )
        assert program is not None
        model = program.model_proto
        _clean(model)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, torch.onnx.OnnxExporterError) as error:
        raise PgsrError(f"the network cannot be exported to ONNX: {error}") from error
    return model.SerializeToString(deterministic=True)


def _clean(model: onnx.ModelProto) -> None:
    """Removes the source paths and traces that the exporter leaves, and says who wrote the file."""
    model.producer_name, model.producer_version = "pgsr", __version__
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name = "pgsr"
    graph.doc_string = ""
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    del graph.value_info[:]  # shapes of inner values; onnx can infer them


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress; errors still raise."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    sink = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
