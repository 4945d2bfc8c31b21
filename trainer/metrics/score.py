"""A number and how it was made: two that were made differently cannot be compared by accident.

ours = Score("FID", 31.2, {"images": 2000, "resolution": 64, "resize": "lanczos", "features": "f58cb..."})
difference(ours, theirs)    # PgsrError: FID of 2000 and of 50000 images do not compare
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pgsr.errors import PgsrError


@dataclass(frozen=True)
class Score:
    """One measured number."""

    name: str
    value: float
    conditions: Mapping[str, Any]  # what decides it, besides the pictures: all of it, as plain JSON
    deviation: float | None = None  # over splits or subsets, where the metric has them

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` gives the same score back. The conditions stand under "made"."""
        data = asdict(self)
        conditions = data.pop("conditions")
        return {
            "name": data["name"],
            "value": data["value"],
            "made": conditions,
            "deviation": data["deviation"],
        }


def from_dict(data: Mapping[str, Any]) -> Score:
    """Raises PgsrError if this is no score's dictionary."""
    try:
        return Score(str(data["name"]), float(data["value"]), dict(data["made"]), data.get("deviation"))
    except (KeyError, TypeError, ValueError) as error:
        raise PgsrError(f"not a score: {error!r}") from error


def difference(ours: Score, theirs: Score) -> float:
    """Returns our value less theirs. Raises PgsrError, which names what differs, if they were made
    differently."""
    if ours.name != theirs.name:
        raise PgsrError(f"{ours.name} and {theirs.name} are different metrics")
    for key in sorted({*ours.conditions, *theirs.conditions}):
        mine, other = ours.conditions.get(key), theirs.conditions.get(key)
        if mine != other:
            raise PgsrError(
                f"{ours.name} made with {key} {mine} does not compare to one made with {key} {other}: "
                "measure both the same way"
            )
    return ours.value - theirs.value
