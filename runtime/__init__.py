"""pgsr.runtime: a bundle in, faces out. numpy, Pillow and one inference library; never torch.

    from pgsr.runtime import Synthesizer
    faces = Synthesizer().images(seed=0, count=8)   # uint8 [8, 256, 256, 3]

Five names: Synthesizer (seeds and indices to pixels), Job and write_faces (to a folder or archive), Upscaler
(any picture, larger), PgsrError (what they raise: one sentence). docs/generate.md has examples.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgsr.errors import PgsrError

    from .generate.job import Job
    from .generate.write import write_faces
    from .synthesizer import Synthesizer
    from .upscale.upscaler import Upscaler

__all__ = ["Job", "PgsrError", "Synthesizer", "Upscaler", "write_faces"]

_MODULES = {
    "Job": "pgsr.runtime.generate.job",
    "PgsrError": "pgsr.errors",
    "Synthesizer": "pgsr.runtime.synthesizer",
    "Upscaler": "pgsr.runtime.upscale.upscaler",
    "write_faces": "pgsr.runtime.generate.write",
}


def __getattr__(name: str) -> Any:
    """Loads numpy and the rest only when one of them is asked for, so that `--help` is quick."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
