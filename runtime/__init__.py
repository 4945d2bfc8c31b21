"""pgsr.runtime: a bundle in, faces out. numpy, Pillow and one inference library; never torch.

from pgsr.runtime import Synthesizer
with Synthesizer() as synthesizer:
    faces = synthesizer.images(seed=0, count=8)   # uint8 [8, S, S, 3]
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .synthesizer import Synthesizer

__all__ = ["Synthesizer"]


def __getattr__(name: str) -> Any:
    """Loads numpy only when a Synthesizer is asked for, so that `pgsr-generate --help` is quick."""
    if name == "Synthesizer":
        from .synthesizer import Synthesizer

        return Synthesizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
