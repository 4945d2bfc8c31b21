"""Checkpoints (contract 1): one .safetensors file that holds everything a run is.

Tensors stand under `generator.`, `generator_ema.`, `discriminator.` and `optimizer.`, and under `objective.`
and `watch.` where a run has such; the metadata hold the resolved recipe, the progress and the provenance
as JSON, and a digest of all of it, since the format itself would not notice a flipped bit.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as deserialized
from safetensors.torch import save as serialized
from torch import Tensor

from pgsr.errors import PgsrError
from pgsr.files import replacing

FORMAT = "pgsr-checkpoint-1"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    tensors: dict[str, Tensor]  # by full name, on the CPU
    config: dict[str, Any]  # the resolved recipe
    progress: dict[str, Any]  # {"images_shown": int, ...}
    provenance: dict[str, Any]  # {"version": ..., "data": {"fingerprint": ...}, ...}

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def _digest(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """sha256 over names, types, shapes and bytes of all tensors, and over the JSON texts."""
    h = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        h.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        h.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    for name in sorted(texts):
        h.update(f"{name} {texts[name]}\n".encode())
    return h.hexdigest()


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the whole file or nothing. Raises PgsrError if the disk is full or not writable."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
    texts = {
        name: json.dumps(getattr(checkpoint, name), sort_keys=True)
        for name in ("config", "progress", "provenance")
    }
    metadata = {"format": FORMAT, "digest": _digest(tensors, texts), **texts}
    with replacing(path) as temporary:
        temporary.write_bytes(serialized(tensors, metadata=metadata))


def load(path: Path) -> Checkpoint:
    """Reads and checks a file. Raises PgsrError if it is absent, damaged or of another kind."""
    tensors, metadata = _contents(path, with_tensors=True)
    digest = metadata.pop("digest", None)
    if digest != _digest(tensors, metadata):
        raise PgsrError(f"{path} is damaged: its contents do not match its digest; use an older checkpoint")
    return Checkpoint(tensors=tensors, **_fields(metadata, path))


def load_description(path: Path) -> Checkpoint:
    """A checkpoint without its tensors, read at once and not checked against its digest.

    Raises PgsrError if the file is absent or of another kind.
    """
    return Checkpoint(tensors={}, **_fields(_contents(path, with_tensors=False)[1], path))


def _contents(path: Path, with_tensors: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise PgsrError(f"no checkpoint at {path}")
    try:
        tensors, metadata = _all_of(path) if with_tensors else ({}, _metadata_of(path))
    except (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
    ) as error:  # KeyError: a type that is not PyTorch's
        raise PgsrError(f"{path} is damaged or not a checkpoint: {error}") from error
    if metadata.pop("format", None) != FORMAT:
        raise PgsrError(f"{path} is not a checkpoint of this version of pgsr ({FORMAT})")
    return tensors, metadata


def _all_of(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read as bytes: safe_open's tensors lie in the mapped file, and end the process with SIGBUS if that is
    cut meanwhile; and it loses two of Python's numbers with each of them."""
    data = path.read_bytes()
    tensors = deserialized(data)  # which has checked the header
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, header.get("__metadata__") or {}


def _metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _fields(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The JSON texts as dicts. Raises PgsrError if one is absent, no JSON, or something else."""
    fields = {}
    for name in ("config", "progress", "provenance"):
        try:
            fields[name] = json.loads(metadata[name])
        except (KeyError, ValueError, RecursionError) as error:
            raise PgsrError(f"{path} is damaged: its {name} cannot be read") from error
        if not isinstance(fields[name], dict):
            raise PgsrError(f"{path} is damaged: its {name} is no table")
    return fields


def files_of(run: Path) -> list[Path]:
    """A run folder's checkpoints, oldest first: those named by the images shown; others are the user's."""
    files = (run / "checkpoints").glob("*.safetensors")
    return sorted(path for path in files if re.fullmatch(r"[0-9]{9,15}", path.stem) and path.is_file())


def newest(path: Path) -> Path:
    """The newest checkpoint of a run folder; a file is itself. Raises PgsrError if there is none."""
    if path.is_file():
        return path
    files = files_of(path)
    if not files:
        raise PgsrError(f"{path} holds no checkpoint: train it first, or name a .safetensors file")
    return files[-1]
