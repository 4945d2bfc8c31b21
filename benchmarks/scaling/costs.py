"""What a number of faces costs, from measured figures: arithmetic alone, no simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass

LISTED = 1000  # names of an answer to a request that lists a bucket (S3's ListObjectsV2)
PUTS_A_SECOND = 3_500  # of one prefix that S3 promises to take


@dataclass(frozen=True)
class Storage:
    """How a format fills an object store."""

    bytes: float  # of all
    shards: int
    shard_bytes: float
    puts: int  # requests that write: the parts of each shard, its beginning and end, and its record
    lists: int  # that ask what is there, a start: shards, and their records
    puts_of_files: int  # if each face were an object of its own


def storage(faces: int, shard: int, face_bytes: float, part_bytes: int) -> Storage:
    """`part_bytes`: of a multipart upload's parts."""
    shards = math.ceil(faces / shard)
    parts = max(1, math.ceil(shard * face_bytes / part_bytes))
    return Storage(
        bytes=faces * face_bytes,
        shards=shards,
        shard_bytes=shard * face_bytes,
        puts=shards * (parts + 3),
        lists=2 * math.ceil(shards / LISTED),
        puts_of_files=faces,
    )


def hours(faces: int, rate: float) -> float:
    """Hours of one core, or one GPU, that makes `rate` faces a second."""
    return faces / rate / 3600


def failures(nodes: int, makespan: float, mtbf: float) -> float:
    """How many are to be expected, of nodes that fail independently once in `mtbf` seconds each."""
    return nodes * makespan / mtbf


def lost_share(seconds: float, mtbf: float) -> float:
    """The share of work that failures take when a shard takes so many seconds: on average, half of one in
    progress is lost, once in a node's `mtbf`."""
    return seconds / 2 / mtbf


def nodes_that_fill(storage_bytes: float, node_rate: float, face_bytes: float) -> float:
    """Nodes that together make as much as the storage takes."""
    return storage_bytes / (node_rate * face_bytes)
