"""One contender of `pgsr-bench training`, in a process of its own, since the allocator's settings and the
memory peak belong to a process. It builds its step, warms up, then runs steps when told.

It says a line of JSON when it is there, and one for each line it is told: the job first, then how many steps
to make, until the input ends.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
import torch._dynamo  # optimizers import it in their first step, which should not count as memory
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

from pgsr.errors import PgsrError
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.allocator import keep_freed_memory
from pgsr.trainer.step.schedule import Schedule
from pgsr.trainer.step.schedule import build as build_schedule
from pgsr.trainer.step.trainer import make_trainer

from ..references import training as plain

Step = Callable[[], object]


@dataclass(frozen=True)
class Job:
    """What a contender is; travels as JSON."""

    name: str
    convolution: str  # "vanilla" or "separable"
    resolution: int  # that is trained
    batch: int
    widths: dict[str, int]  # latent_size, feature_base, feature_max
    archive: str  # of pictures
    device: str
    threads: int
    call_seconds: float  # the least that a timed call should take
    reference: bool = False
    settings: tuple[str, ...] = ()  # "key=value", of the recipe, for ours
    keep_memory: bool = True  # whether freed memory stays with the process, for ours

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Work:
    """A step that can be timed."""

    step: Step
    period: int  # steps after which the work repeats
    precision: str


# ----------------------------------------------------------------------------
# The two kinds.


def reference(job: Job, device: torch.device) -> Work:
    """plain_training.py's step."""
    latent_size, base, most = (job.widths[n] for n in ("latent_size", "feature_base", "feature_max"))
    generator = plain.PlainProGenerator(job.convolution, job.resolution, latent_size, base, most)
    critic = plain.PlainCritic(job.convolution, job.resolution, base, most)
    for network in (generator, critic):
        plain.initialise(network)
        network.to(device)
    pixels = torch.tensor(load_photographs(Path(job.archive), job.resolution).pixels, device=device)
    trainer = plain.PlainTrainer(generator, critic, pixels, latent_size)
    return Work(lambda: trainer.step(job.batch), 1, "float32")


def ours(job: Job, device: torch.device) -> Work:
    """pgsr-train's step, at the beginning of the resolution's stable phase."""
    if job.keep_memory:
        keep_freed_memory()
    recipe = config.load(recipe_name(job.convolution), job.settings)
    schedule = build_schedule(recipe.schedule, recipe.objective.critic_steps)
    trainer = make_trainer(recipe, schedule, Path(job.archive), device)
    trainer.state.images_shown = stable_start(schedule, job.resolution)
    return Work(trainer.step, recipe.objective.penalty_every, str(trainer.precision).removeprefix("torch."))


def recipe_name(convolution: str) -> str:
    """Returns the name of the recipe that trains with a convolution."""
    return f"progan-64-{convolution}"


def stable_start(schedule: Schedule, resolution: int) -> int:
    """Images shown when a resolution has just faded in. Raises PgsrError if it is never trained alone."""
    for phase in schedule.phases:
        if phase.resolution == resolution and not phase.fading:
            return phase.start
    raise PgsrError(f"the schedule has no stable phase at {resolution}")


# ----------------------------------------------------------------------------
# What is measured inside.


class MultiplyAdds(TorchDispatchMode):
    """Counts those of convolutions and matrix products, second derivatives included.

    Not FlopCounterMode, whose hooks on modules do not bear a gradient inside a loss.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        formula = FORMULAS.get(operation._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any, out_val: Any = None) -> int:
    """Each gradient wanted costs what the convolution did; PyTorch's own formula ignores groups."""
    transposed, output_mask = rest[4], rest[-1]
    once: int = conv_flop_count([*x.shape], [*weight.shape], [*grad.shape], transposed)
    return once * int(sum(output_mask[:2]))


FORMULAS = {**flop_registry, torch.ops.aten.convolution_backward: _convolution_backward}


def multiply_adds(work: Work) -> int:
    """Counts the multiply-adds of a step: the mean of a period's."""
    counter = MultiplyAdds()
    with counter:
        for _ in range(work.period):
            work.step()
    return round(counter.flops / 2 / work.period)


def memory_bytes(entry: str) -> int:
    """VmRSS or VmHWM (its peak) of this process; 0 where the system does not tell.

    Not getrusage's ru_maxrss, which begins with the parent's.
    """
    try:
        match = re.search(rf"^{entry}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) * 1024 if match else 0


class Clocked:
    """Steps with the device waited for."""

    def __init__(self, work: Work, device: torch.device, memory_before: int) -> None:
        self.work, self.device, self.memory_before = work, device, memory_before

    def run(self, steps: int) -> float:
        """Seconds that `steps` took."""
        began = time.perf_counter()
        for _ in range(steps):
            self.work.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began

    def warm_up(self, least_seconds: float) -> int:
        """The steps of a call: whole periods, at least one, that take about so many seconds."""
        self.run(self.work.period)
        seconds = self.run(self.work.period)
        return self.work.period * max(1, round(least_seconds / seconds))

    def peak_bytes(self) -> int:
        """Memory that building and stepping took at most: the GPU's, or the process's."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return max(0, memory_bytes("VmHWM") - self.memory_before)


# ----------------------------------------------------------------------------
# The conversation.


def serve(job: Job, requests: TextIO, answer: Callable[[dict[str, Any]], None]) -> None:
    """Builds the job's step and makes steps on request. Raises PgsrError for a wrong recipe setting."""
    device = torch.device(job.device)
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    before = memory_bytes("VmRSS")
    work = (reference if job.reference else ours)(job, device)
    adds = multiply_adds(work)
    clocked = Clocked(work, device, before)
    steps = clocked.warm_up(job.call_seconds)
    answer({"steps": steps, "multiply_adds": adds, "precision": work.precision})
    for line in requests:
        seconds = clocked.run(int(json.loads(line)["steps"]))
        answer({"seconds": seconds, "memory_peak_bytes": clocked.peak_bytes()})


def end_with(parent: int) -> None:
    """Ends this process, whatever it is computing, once its parent is gone: that may have been killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    """Speaks on the real stdout; whatever else prints goes to stderr."""
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=channel, flush=True)

    answer({})
    try:
        serve(Job(**json.loads(sys.stdin.readline())), sys.stdin, answer)
    except PgsrError as error:
        answer({"error": str(error)})


if __name__ == "__main__":
    main()
