"""Targets that are weights: checkpoints of ours, and files of every layout that is imported."""

from __future__ import annotations

import functools
import inspect
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import save as as_safetensors
from vgg19 import tiny_vgg19

import peers
from pgsr import checkpoint as checkpoints
from pgsr.export.importers import read_foreign
from pgsr.export.source import read_source
from pgsr.networks import GENERATORS
from pgsr.networks.vgg import load_vgg19
from pgsr.trainer.data.cache import Noise
from pgsr.trainer.run_folder.run import Run
from pgsr.trainer.run_folder.status import status_of
from pgsr.trainer.start import open_run
from pgsr.trainer.step import recipe as recipes

from .documents import RECIPE
from .harness import Target, folder, put, work
from .strategies import as_json, bytes_near, changed, documents, scalars, values

FEW, LATENT, WIDTHS = 6, 6, [8, 8, 4]


# ----------------------------------------------------------------------------
# Ours.


def read_checkpoint(data: bytes) -> None:
    """As pgsr-export does."""
    path = put("000000008.safetensors", data)
    checkpoints.load_description(path)
    source = read_source(path)
    assert source.kind in ("generator", "upscaler")


def read_to_resume(data: bytes) -> None:
    """As pgsr-train --resume and --status do."""
    run = _run()
    path = run.folder / "checkpoints" / "000000008.safetensors"
    path.write_bytes(data)
    status_of(run.folder)
    run.resume(path)
    run.trainer.step()


@functools.cache
def _run() -> Run:
    """A run of two kinds of pixels in place of photographs, before its first step."""
    os.environ["PGSR_PRECISION"] = "float32"
    recipe = recipes.from_dict(RECIPE | {"name": "x"})
    run = open_run(recipe, Noise(8), folder("run"), torch.device("cpu"))  # type: ignore[arg-type]
    run.folder.joinpath("checkpoints").mkdir()
    run.folder.joinpath("config.json").write_bytes(as_json(recipe.as_dict()))
    return run


@functools.cache
def _checkpoint() -> checkpoints.Checkpoint:
    from pgsr.trainer.step.state import state_tensors

    run = _run()
    run.trainer.step()
    tensors = {name: tensor.clone() for name, tensor in state_tensors(run.trainer.state).items()}
    progress = {"images_shown": 8, "step": 2, "grown_resolution": 4, "learning_rate_scale": 1.0}
    return checkpoints.Checkpoint(
        tensors, run.trainer.recipe.as_dict(), {**progress, "rollbacks": 0, "diverged_at": 0}, run.provenance
    )


def checkpoint_files() -> list[bytes]:
    return [_saved(_checkpoint())]


def _saved(checkpoint: checkpoints.Checkpoint) -> bytes:
    path = work() / "saved.safetensors"
    checkpoints.save(path, checkpoint)
    return path.read_bytes()


@st.composite
def built_checkpoints(draw: Callable[..., Any]) -> bytes:
    """Checkpoints whose digest is right."""
    valid = _checkpoint()
    about: Any = {name: getattr(valid, name) for name in ("config", "progress", "provenance")}
    which = draw(st.sampled_from(["config", "progress", "provenance", "tensors", "generator"]))
    if which == "generator":
        options = st.one_of(changed(valid.config["generator"], 2), large_networks())
        about["config"] = {**valid.config, "generator": draw(options)}
    elif which != "tensors":
        about[which] = draw(changed(about[which], 2))
    tensors = dict(valid.tensors)
    for _ in range(draw(st.integers(1, 3)) if which == "tensors" else 0):
        name = draw(st.sampled_from(sorted(valid.tensors)))
        match draw(st.integers(0, 3)):
            case 0:
                tensors.pop(name, None)
            case 1:
                tensors[name] = draw(st.sampled_from(odd_tensors()))
            case 2:
                tensors[name + draw(st.sampled_from(["x", "/step", ".", "/"]))] = torch.zeros(1)
            case _:
                tensors[name] = tensors.get(name, torch.zeros(1)).reshape(-1)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    return _saved(checkpoints.Checkpoint(copies, **about))


@st.composite
def large_networks(draw: Callable[..., Any]) -> dict[str, Any]:
    """Options of any generator, some of them as large as they may be."""
    kind = draw(st.sampled_from(sorted(GENERATORS)))
    parameters = inspect.signature(GENERATORS[kind]).parameters
    numbers = [name for name, parameter in parameters.items() if type(parameter.default) is int]
    large = st.sampled_from([1, 2, 64, 128, 1000, 2**10, 2**13, 2**17, 2**20])
    return {"kind": kind, **draw(st.dictionaries(st.sampled_from(numbers), large))}


@functools.cache
def odd_tensors() -> list[torch.Tensor]:
    kinds = [torch.float16, torch.float64, torch.int64, torch.bool, torch.bfloat16, torch.uint8]
    odd = [torch.zeros(2, 3, dtype=kind) for kind in kinds]
    odd += [torch.tensor(1.0), torch.zeros(0), torch.zeros(0, 3), torch.full((4, 4), float("nan"))]
    return [*odd, torch.zeros(1, 1, 1, 1), torch.zeros(3, 6, 3, 3), torch.zeros(300, 1, 3, 3), torch.zeros(6)]


# ----------------------------------------------------------------------------
# Others': what a file of each layout holds.


def read_weights(data: bytes) -> None:
    read_foreign(put("weights.pth", data))


def read_vgg(data: bytes) -> None:
    """A file of VGG19's weights, as [objective.content] names one."""
    load_vgg19(put("vgg.pth", data))


def _layouts() -> dict[str, Any]:
    draw = peers.Draw(1, torch.float32)
    akanimax = peers.akanimax_tensors(draw, LATENT, WIDTHS)
    genforce = peers.genforce_tensors(draw, LATENT, WIDTHS, False)
    mm = peers.mmgeneration_tensors(draw, LATENT, WIDTHS, True)
    zoo = peers.zoo_tensors(draw, LATENT, WIDTHS)
    names = ("conv1", "conv2", "conv3")
    lornatang = peers.lornatang_tensors(draw, FEW, 2, 1, names)
    return {
        "pro-gan-pytorch": peers.akanimax_file(akanimax, akanimax),
        "bmsg-gan": OrderedDict(akanimax),
        "rosinality": OrderedDict(peers.Generator(draw, LATENT, 1, WIDTHS).state_dict()),
        "gan-zoo": {"netG": OrderedDict(zoo), "avgG": OrderedDict(zoo)},
        "genforce": {"models": {"generator": genforce, "generator_smooth": genforce}},
        "mmgeneration": {"state_dict": {f"generator_ema.{k}": v for k, v in mm.items()}},
        "odegeasslbc": OrderedDict(peers.bilinear_tensors(draw, LATENT, WIDTHS, True)),
        "lornatang": {"epoch": 3, "state_dict": OrderedDict(lornatang), "optimizer": {"state": {}}},
        "basicsr": {"params_ema": peers.basicsr_tensors(draw, FEW, 2, 3)},
        "leftthomas": OrderedDict(peers.LeftthomasGenerator(2).state_dict()),
        "sgrvinod": OrderedDict(peers.SgrvinodGenerator(2).state_dict()),
        "pytorch-gan": OrderedDict(peers.LindernorenGenerator(2).state_dict()),
        "compact": _compact(),
    }


layouts = functools.cache(_layouts)


def _compact() -> dict[str, Any]:
    """Of those that spandrel reads."""
    draw = peers.Draw(2, torch.float32)
    t = {"body.1.weight": draw(8), "body.3.weight": draw(8)}
    for number, shape in {0: (8, 3), 2: (8, 8), 4: (12, 8)}.items():
        t |= {f"body.{number}.weight": draw(*shape, 3, 3), f"body.{number}.bias": draw(shape[0])}
    return {"params": t}


def torch_file(tree: Any, stream: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(tree, out, _use_new_zipfile_serialization=not stream)
    return out.getvalue()


def _nvidia(average: Any, **settings: Any) -> bytes:
    with peers.saved_as(tfutil=[peers.Network]):
        return pickle.dumps(peers.nvidia_networks(average, average, **settings), 2)


def nvidia_files() -> list[bytes]:
    arrays = peers.nvidia_arrays(peers.Draw(1, torch.float32), 4, [4, 4], True, 0.0)
    network, _ = peers.theano_network(peers.Draw(1, torch.float32), 4, [4, 4])
    with peers.saved_as(network=[peers.Network]):
        return [_nvidia(arrays), peers.python2_pickle(network)]


def leaves() -> SearchStrategy[Any]:
    """What may stand where a tensor or a setting belongs."""
    strided = st.sampled_from([torch.zeros(1).expand(2000, 2000), torch.zeros(9)[::2], torch.zeros(2, 3).T])
    return st.one_of(st.sampled_from(odd_tensors()), strided, scalars(), values())


def built_layout(name: str) -> SearchStrategy[bytes]:
    return changed(layouts()[name], 3, leaves()).map(torch_file)


def built_nvidia() -> SearchStrategy[bytes]:
    arrays = peers.nvidia_arrays(peers.Draw(1, torch.float32), 4, [4, 4], True, 0.0)
    odd = st.one_of(leaves(), st.sampled_from([np.zeros(0), np.zeros((3, 4)), np.float32(7), np.array("x")]))
    settings = st.dictionaries(
        st.sampled_from(
            ["fused_scale", "use_wscale", "label_size", "pixelnorm_epsilon", "num_channels", "fmap_max"]
        ),
        values(),
        max_size=2,
    )
    return st.tuples(changed(arrays, 2, odd), settings).map(lambda drawn: _nvidia_of(*drawn))


def _nvidia_of(arrays: Any, settings: dict[str, Any]) -> bytes:
    return _nvidia({k: _array(v) for k, v in arrays.items()}, **settings)


def _array(value: Any) -> Any:
    """A tensor as numpy has it, which knows no bfloat16."""
    if not isinstance(value, torch.Tensor):
        return value
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


# ----------------------------------------------------------------------------
# Containers.


def small_tree() -> dict[str, Any]:
    return {
        "state_dict": OrderedDict(peers.basicsr_tensors(peers.Draw(1, torch.float32), 2, 1, 2)),
        "epoch": 3,
    }


def torch_zips() -> list[bytes]:
    return [torch_file(small_tree())]


def vgg_files() -> list[bytes]:
    return [torch_file(tiny_vgg19())]


def built_vgg() -> SearchStrategy[bytes]:
    return st.one_of(changed(tiny_vgg19(), 3, leaves()).map(torch_file), built_torch_zips())


def torch_streams() -> list[bytes]:
    return [torch_file(small_tree(), stream=True)]


def built_torch_zips() -> SearchStrategy[bytes]:
    """Zips whose sums are right, around a pickle that is not."""
    (valid,) = torch_zips()
    with zipfile.ZipFile(io.BytesIO(valid)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    key = next(name for name in files if name.endswith("data.pkl"))
    return st.one_of(bytes_near([files[key]], 3), pickles()).map(lambda data: _stored({**files, key: data}))


def _stored(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


OPCODES = [
    *(
        b"}",
        b"]",
        b"(",
        b")",
        b"\x85",
        b"\x86",
        b"\x87",
        b"a",
        b"e",
        b"s",
        b"u",
        b"t",
        b"l",
        b"d",
        b"K\x01",
        b"0",
    ),
    *(
        b"q\x00",
        b"q\x01",
        b"h\x00",
        b"h\x01",
        b"\x94",
        b"1",
        b"2",
        b"R",
        b"b",
        b"\x81",
        b"\x92",
        b"\x93",
        b"Q",
        b"N",
    ),
    *(
        b"P1\n",
        b"\x88",
        b"\x89",
        b"\x8f",
        b"\x90",
        b"\x91",
        b"ccollections\nOrderedDict\n",
        b"o",
        b"ios\nsystem\n",
    ),
    *(
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nFloatStorage\n",
        b"ctorch._utils\n_rebuild_parameter\n",
    ),
    *(
        b"cnumpy.core.multiarray\n_reconstruct\n",
        b"cnumpy\nndarray\n",
        b"cnumpy\ndtype\n",
        b"c_codecs\nencode\n",
    ),
    *(
        b"ctorch\nSize\n",
        b"ctorch._tensor\n_rebuild_from_type_v2\n",
        b"ccopyreg\n_reconstructor\n",
        b"cmodel\nG\n",
    ),
    *(b"X\x01\x00\x00\x00a", b"X\x07\x00\x00\x00storage", b"X\x03\x00\x00\x00cpu", b"X\x02\x00\x00\x00f4"),
    *(
        b"X\x06\x00\x00\x00latin1",
        b"U\x04abcd",
        b"C\x04abcd",
        b"\x96\x04\0\0\0\0\0\0\0abcd",
        b"G@\x00\0\0\0\0\0\0",
    ),
    *(
        b"\x8a\x09" + b"\xff" * 8 + b"\0",
        b"J\xff\xff\xff\x7f",
        b"J\xff\xff\xff\xff",
        b"M\xff\xff",
        b"I01\n",
        b"L9L\n",
    ),
    *(
        b"X\x0b\x00\x00\x00_parameters",
        b"X\x08\x00\x00\x00_modules",
        b"X\x08\x00\x00\x00_buffers",
        b"cm\nN\n)\x81}b",
    ),
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ",
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x02\x85K\x01\x85\x89}tR",
]


def pickles() -> SearchStrategy[bytes]:
    """Programs of the pickle machine."""
    return st.lists(st.sampled_from(OPCODES), max_size=40).map(
        lambda parts: b"\x80\x02" + b"".join(parts) + b"."
    )


def safetensors_files() -> list[bytes]:
    return [as_safetensors(peers.basicsr_tensors(peers.Draw(1, torch.float32), 2, 1, 2), {"a": "b"})]


def built_safetensors() -> SearchStrategy[bytes]:
    (valid,) = safetensors_files()
    (length,) = struct.unpack_from("<Q", valid)
    header, data = json.loads(valid[8 : 8 + length]), valid[8 + length :]
    return documents(header).map(lambda text: struct.pack("<Q", len(text)) + text + data)


def _of_layout(name: str) -> Target:
    return Target(
        f"import-{name}", read_weights, lambda: [torch_file(layouts()[name])], lambda: built_layout(name)
    )


LAYOUTS = (
    *("pro-gan-pytorch", "bmsg-gan", "rosinality", "gan-zoo", "genforce", "mmgeneration", "odegeasslbc"),
    *("lornatang", "basicsr", "leftthomas", "sgrvinod", "pytorch-gan"),
    *(("compact",) if find_spec("spandrel") else ()),
)
TARGETS = [
    Target("checkpoint", read_checkpoint, checkpoint_files, built_checkpoints),
    Target("checkpoint-to-resume", read_to_resume, checkpoint_files, built_checkpoints),
    Target("weights-safetensors", read_weights, safetensors_files, built_safetensors),
    Target("weights-zip", read_weights, torch_zips, built_torch_zips),
    Target("weights-stream", read_weights, torch_streams, lambda: bytes_near(torch_streams(), 3)),
    Target("weights-vgg", read_vgg, vgg_files, built_vgg),
    Target("weights-pickle", read_weights, nvidia_files, pickles),
    Target("import-nvidia", read_weights, nvidia_files, built_nvidia),
    *map(_of_layout, LAYOUTS),
]
