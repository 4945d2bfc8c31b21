"""Data-parallel training under torchrun: every process sees its share of each batch.

Rank r of n takes the images r, r + n, r + 2n, ... of a batch. So n processes see the images of one. The
minibatch standard deviation groups every M-th image: where n divides M a group lies in one process; elsewhere
processes add up its sums, and its gradients.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce

from pgsr.errors import PgsrError
from pgsr.networks.layers import Share

T = TypeVar("T")

PATIENCE = timedelta(seconds=45)  # how long a rank waits for the others in a step before it gives up
STARTING = timedelta(minutes=10)  # within which all have come: PyTorch may be read from a slow disk
UNLIMITED = timedelta(days=365)  # gloo knows no other way to say so
SAID_AFTER, SAID_EVERY = 5.0, 60.0  # seconds: when a rank that waits for another says so


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those of the run."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # among those of this machine
    steps: Any = None  # the group in which gradients are averaged
    statistics: Any = None  # the one in which sums over a batch are added up, within steps
    control: Any = None  # that in which ranks agree on stopping, on the CPU
    meeting: Any = None  # and that in which they wait for one that works for all

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

    def share_of(self, batch: int) -> Share | None:
        """What layers that look across a batch are told of this rank's share; None: it is all of it."""
        if self.count == 1:
            return None
        return Share(self.rank, self.count, batch, self._differentiable_sum)

    def _differentiable_sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on every rank; its gradients are sums over ranks too."""
        total: torch.Tensor = all_reduce(values.contiguous(), group=self.statistics)
        return total

    def any(self, flag: bool) -> bool:
        """Returns whether any rank says yes; every rank must ask."""
        if self.count == 1:
            return flag
        with named_failures():
            votes = torch.tensor(int(flag))
            dist.all_reduce(votes, group=self.control)
        return bool(votes.item())

    def agreed(self, precision: torch.dtype) -> torch.dtype:
        """The most careful precision that any rank has chosen, for all: their gradients are of one scale."""
        for careful in (torch.float64, torch.float32, torch.float16):
            if self.meet(precision == careful):
                return careful
        return precision

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on every rank."""
        if self.count > 1:
            with named_failures():
                dist.all_reduce(values, group=self.steps)
        return values

    def meet(self, flag: bool = False, waiting_for: str = "the others") -> bool:
        """Waits until every rank has come here, however long that takes; whether any of them says yes.

        A rank that waits says so on stderr. Raises PgsrError if another process is gone.
        """
        if self.count == 1:
            return flag
        with named_failures():
            votes = torch.tensor(int(flag))
            work = dist.all_reduce(votes, group=self.meeting, async_op=True)
            self._watch(work, waiting_for)
            work.wait()
        return bool(votes.item())

    def _watch(self, work: Any, waiting_for: str) -> None:
        """Looks at an operation until it is done: soon at first, since most are."""
        began, pause, next_said = time.monotonic(), 0.0005, SAID_AFTER
        while not work.is_completed():
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
            waited = time.monotonic() - began
            if waited >= next_said:
                print(
                    f"rank {self.rank} waits for {waiting_for} ({waited:.0f} s)", file=sys.stderr, flush=True
                )
                next_said += SAID_EVERY

    def in_turn(self, work: Callable[[], T], waiting_for: str) -> T:
        """Does the same work on every rank: first on one of each machine, so that the others find its cache.

        Raises what the work raises; where that was another rank's, a PgsrError that says so.
        """
        if self.count == 1:
            return work()
        results: list[T] = []
        failure: PgsrError | None = None
        for turn_of_first in (True, False):
            if turn_of_first == (self.local_rank == 0):
                try:
                    results.append(work())
                except PgsrError as error:
                    failure = error
            if self.meet(failure is not None, waiting_for):
                raise failure or PgsrError(f"rank {self.rank} waited for {waiting_for}, which failed")
        return results[0]

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as DDP runs it: its gradients are the means over ranks."""
        if self.steps is None or not any(p.requires_grad for p in module.parameters()):
            return module
        # Gradients of 1 x 1 weights are in another order of dimensions and the same order of memory.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # Layers that are not grown in yet take no part.
        return nn.parallel.DistributedDataParallel(
            module, process_group=self.steps, find_unused_parameters=True
        )


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
        dist.init_process_group("gloo", timeout=STARTING)
    try:
        with named_failures():
            ranks = _grouped(device)
        yield ranks
    finally:
        dist.destroy_process_group()


def _grouped(device: torch.device) -> Ranks:
    """Makes the groups of the processes that have met."""
    rank = dist.get_rank()
    backend = "nccl" if device.type == "cuda" else "gloo"
    steps, statistics = (dist.new_group(backend=backend, timeout=PATIENCE) for _ in range(2))
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    meeting = dist.new_group(backend="gloo", timeout=UNLIMITED)
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    return Ranks(rank, dist.get_world_size(), local_rank, steps, statistics, control, meeting)


def local_device(device: torch.device) -> torch.device:
    """Turns "cuda" into the GPU of this rank. Raises PgsrError if there is none for it, or ranks would share
    one."""
    if device.type != "cuda":
        return device
    if device.index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise PgsrError(f"--device {device}: each process of a run takes a GPU of its own: name cuda alone")
    if device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        use_gpu(device)
    return device


def use_gpu(device: torch.device) -> None:
    """Makes a GPU the current one, if its number is given. Raises PgsrError if it is not there."""
    if device.index is None:
        return
    count = torch.cuda.device_count()
    if device.index >= count:
        raise PgsrError(f"there is no GPU {device.index}: this machine has {count}, numbered from 0")
    torch.cuda.set_device(device)
