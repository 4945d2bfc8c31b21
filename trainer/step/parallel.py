"""Data-parallel training under torchrun: every process sees its share of each batch.

Rank r of n takes the images r, r + n, r + 2n, ... of a batch. So n processes see the images of one, and
since the minibatch standard deviation groups every M-th image, its groups are those of one process too
wherever a share is a multiple of the group; elsewhere it is taken within a rank's share.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pgsr.errors import PgsrError

PATIENCE = timedelta(seconds=45)  # how long a rank waits for the others before it gives up


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those of the run."""

    rank: int = 0
    count: int = 1
    control: Any = None  # the group in which ranks agree on stopping, on the CPU

    def share(self, start: int, batch: int) -> range:
        """Returns which of the images start ... start + batch - 1 are this rank's."""
        if batch < self.count:
            raise PgsrError(
                f"a batch of {batch} cannot be shared by {self.count} processes: start fewer, "
                f"or set schedule.batch (or schedule.at.N.batch) to at least {self.count}"
            )
        return range(start + self.rank, start + batch, self.count)

    def weight(self, share: int, batch: int) -> float:
        """Returns what a mean over this rank's share counts, so that the mean over ranks is that of the
        batch."""
        return share * self.count / batch

    def any(self, flag: bool) -> bool:
        """Returns whether any rank says yes; every rank must ask."""
        if self.count == 1:
            return flag
        with named_failures():
            votes = torch.tensor(int(flag))
            dist.all_reduce(votes, group=self.control)
        return bool(votes.item())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on every rank."""
        if self.count > 1:
            with named_failures():
                dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Waits until every rank has come here."""
        self.any(False)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as DDP runs it: its gradients are the means over ranks."""
        if self.count == 1 or not any(p.requires_grad for p in module.parameters()):
            return module
        # Layers that are not grown in yet take no part.
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)


ALONE = Ranks()


@contextlib.contextmanager
def named_failures() -> Iterator[None]:
    """Turns what the communication layer raises when a rank is gone into a line for the user."""
    try:
        yield
    except RuntimeError as error:
        if not dist.is_initialized():
            raise
        reasons = ("connection", "timed out", "timeout", "gloo", "nccl", "peer", "socket")
        if not any(reason in str(error).lower() for reason in reasons):
            raise
        raise PgsrError(
            f"rank {dist.get_rank()}: another process of this run is gone or stuck; the last checkpoint "
            "is whole: start again with --resume, with as many processes as you like"
        ) from error


@contextlib.contextmanager
def ranks_of_run(device: torch.device) -> Iterator[Ranks]:
    """The ranks that torchrun started, or just this process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    with named_failures():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield Ranks(dist.get_rank(), dist.get_world_size(), control)
    finally:
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """Turns "cuda" into the GPU of this rank."""
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device
