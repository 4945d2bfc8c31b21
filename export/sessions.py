"""Graphs run by ONNX Runtime on the CPU, without its warnings."""

from __future__ import annotations

import onnxruntime

from pgsr.errors import check_onnxruntime
from pgsr.machine import threads_for_onnxruntime


def open_session(
    model: bytes | str, providers: tuple[str, ...] = ("CPUExecutionProvider",), threads: int = 0
) -> onnxruntime.InferenceSession:
    """A session of a graph's bytes or file; `threads` of 0 is one a core that this process may use.

    Raises PgsrError if nothing but its folder is left of it.
    """
    check_onnxruntime(onnxruntime)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    options.intra_op_num_threads = threads_for_onnxruntime(threads)
    return onnxruntime.InferenceSession(model, options, providers=list(providers))
