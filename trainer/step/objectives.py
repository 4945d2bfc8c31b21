"""Losses. An entry of OBJECTIVES is a set of pure functions of scores; penalties are added by weight.

Everything here is computed in float32 at least, whatever the networks' precision. Images are one tensor
[N, 3, H, W], or a tuple of them, one a scale, for generators and critics that see all scales at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from pgsr.errors import PgsrError, check_choice
from pgsr.networks.interfaces import Images
from pgsr.networks.precision import at_least_float32

Score = Callable[[Images], Tensor]  # [N] scores, or [N, 1 + labels]: the score and a logit a label
ObjectiveState = Mapping[str, Tensor]  # scalars that an objective carries from step to step


def _nothing(
    state: ObjectiveState, config: ObjectiveConfig, real: Tensor, fake: Tensor, generator_fake: Tensor
) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True)
class Adversarial:
    """What the critic minimises, given its scores [N], and what the generator does."""

    critic: Callable[[Tensor, Tensor, ObjectiveState], Tensor]  # (real scores, fake scores, state) -> loss
    generator: Callable[[Tensor, Tensor | None], Tensor]  # (fake scores, real scores) -> loss
    compares: bool = False  # whether the generator's loss needs the real scores
    zero_sum: bool = False  # whether it is the critic's term of the fakes, negated
    initial_state: Mapping[str, float] = field(default_factory=dict)
    # (state, config, mean real score, mean fake score of the critic's step, of the generator's step)
    next_state: Callable[[ObjectiveState, ObjectiveConfig, Tensor, Tensor, Tensor], dict[str, Tensor]] = (
        _nothing
    )


def _relativistic_hinge(better: Tensor, worse: Tensor | None) -> Tensor:
    """Each score should be 1 above, or below, the other side's mean: [N], [N] -> scalar.

    The critic wants reals above fakes (equation 12 of paper 4), the generator fakes above reals (13).
    """
    assert worse is not None
    above, below = better - worse.mean(), worse - better.mean()
    return F.relu(1 - above).mean() + F.relu(1 + below).mean()


def _relativistic_squares(better: Tensor, worse: Tensor | None) -> Tensor:
    """Each score should be 1 away from the other side's mean: [N], [N] -> scalar (RaLSGAN of
    Jolicoeur-Martineau 2018)."""
    assert worse is not None
    above, below = better - worse.mean(), worse - better.mean()
    return (above - 1).square().mean() + (below + 1).square().mean()


def _relativistic_wasserstein(better: Tensor, worse: Tensor | None) -> Tensor:
    """Each score less the other side's mean: [N], [N] -> scalar. It comes to twice WGAN's critic's loss, and
    the generator has the reals' scores in it, which do not depend on its weights."""
    assert worse is not None
    above, below = better - worse.mean(), worse - better.mean()
    return below.mean() - above.mean()


def _adaptive_noise(
    state: ObjectiveState, config: ObjectiveConfig, real: Tensor, fake: Tensor, generator_fake: Tensor
) -> dict[str, Tensor]:
    """The magnitude of the critic's own noise (paper 2, appendix B): 0.2 max(0, d - 0.5)**2, where d is the
    running average of its output for real images: 0.5 if it cannot tell them from fakes, 1 if it is sure.
    """
    return _noise_of(0.1 * real + 0.9 * state["certainty"])


def _adaptive_noise_of_fakes(
    state: ObjectiveState, config: ObjectiveConfig, real: Tensor, fake: Tensor, generator_fake: Tensor
) -> dict[str, Tensor]:
    """The same as paper 2's original code has it: d is of the fakes, whose label is 1, and within [0, 1].

    That code as released averages the critic's loss by an index one off; its name, and the paper's "seriously
    unstable when d approaches (or exceeds) 1", are of the fakes' scores.
    """
    return _noise_of(0.1 * fake.clamp(0, 1) + 0.9 * state["certainty"])


def _noise_of(certainty: Tensor) -> dict[str, Tensor]:
    return {"certainty": certainty, "noise": 0.2 * F.relu(certainty - 0.5).square()}


def _equilibrium(
    state: ObjectiveState, config: ObjectiveConfig, real: Tensor, fake: Tensor, generator_fake: Tensor
) -> dict[str, Tensor]:
    """Moves k towards where E[L(G(z))] = gamma E[L(x)], and the measure of convergence M (paper 5, BEGAN)."""
    gap = config.balance * real - generator_fake
    k = (state["k"] + config.balance_rate * gap).clamp(0, 1)
    return {"k": k, "M": real + gap.abs()}


OBJECTIVES: dict[str, Adversarial] = {
    # Wasserstein (Gulrajani et al. 2017; paper 2 section A.1). The penalty is its own term below; with
    # `clip` instead it is the WGAN of Arjovsky et al. 2017 (paper 3, equation 5).
    "wgan-gp": Adversarial(
        critic=lambda real, fake, state: fake.mean() - real.mean(),
        generator=lambda fake, real: -fake.mean(),
        zero_sum=True,
    ),
    # Non-saturating logistic loss: -log D(x) - log(1 - D(G(z))), and -log D(G(z)) for G, D = sigmoid
    # (paper 3, equations 2 and 4).
    "logistic": Adversarial(
        critic=lambda real, fake, state: F.softplus(-real).mean() + F.softplus(fake).mean(),
        generator=lambda fake, real: F.softplus(-fake).mean(),
    ),
    # Hinge (paper 4, section 3.5, before its critics are made relativistic).
    "hinge": Adversarial(
        critic=lambda real, fake, state: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
        generator=lambda fake, real: -fake.mean(),
    ),
    # Relativistic average hinge (paper 4, equations 10 to 14).
    "ra-hinge": Adversarial(
        critic=lambda real, fake, state: _relativistic_hinge(real, fake),
        generator=lambda fake, real: _relativistic_hinge(fake, real),
        compares=True,
    ),
    # The relativistic average versions of the other two losses that paper 4 tried (section 3.5).
    "ra-lsgan": Adversarial(
        critic=lambda real, fake, state: _relativistic_squares(real, fake),
        generator=lambda fake, real: _relativistic_squares(fake, real),
        compares=True,
    ),
    "ra-wgan-gp": Adversarial(
        critic=lambda real, fake, state: _relativistic_wasserstein(real, fake),
        generator=lambda fake, real: _relativistic_wasserstein(fake, real),
        compares=True,
    ),
    # Least squares as paper 2 has them (appendix B and its original code): real 0, fake 1, a tenth of the
    # critic's weight on fakes, and noise in the critic.
    "lsgan-adaptive": Adversarial(
        critic=lambda real, fake, state: real.square().mean() + 0.1 * (1 - fake).square().mean(),
        generator=lambda fake, real: fake.square().mean(),
        initial_state={"certainty": 0.0, "noise": 0.0},
        next_state=_adaptive_noise_of_fakes,
    ),
    # Least squares, real 1 and fake 0 (Mao et al. 2016), with the same noise.
    "lsgan": Adversarial(
        critic=lambda real, fake, state: 0.5 * (1 - real).square().mean() + 0.5 * fake.square().mean(),
        generator=lambda fake, real: 0.5 * (1 - fake).square().mean(),
        initial_state={"certainty": 0.0, "noise": 0.0},
        next_state=_adaptive_noise,
    ),
    # Boundary equilibrium: scores are reconstruction errors L(x) and L(G(z)) (paper 5, BEGAN).
    "began": Adversarial(
        critic=lambda real, fake, state: real.mean() - state["k"] * fake.mean(),
        generator=lambda fake, real: fake.mean(),
        initial_state={"k": 0.0, "M": 0.0},
        next_state=_equilibrium,
    ),
}

PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss}


MOST_UNROLLED = 100  # each keeps a whole pass in memory
MOST_STEPS = 1000  # of critics in one of the generator's, or between penalties


@dataclass(frozen=True)
class ObjectiveConfig:
    """Which losses, and how much of each; the [objective] table of a recipe."""

    adversarial: str = "wgan-gp"  # a name in OBJECTIVES, or "none"
    adversarial_weight: float = 1.0  # in the generator's loss; 1e-3 in SRGAN
    critic_steps: int = 1  # n_critic (paper 2, section A.1)
    unrolled_steps: int = 0  # of the critic that the generator looks ahead (Metz et al. 2017)
    updates: str = "alternating"  # or "simultaneous": both networks' from one pass of the critic
    gradient_penalty: float = 0.0  # lambda of WGAN-GP, 10 in its paper
    gradient_target: float = 1.0  # gamma: the norm the penalty pulls to; 750 for CIFAR-10
    drift: float = 0.0  # epsilon_drift, 0.001 in paper 2
    r1: float = 0.0  # gamma of R1 (Mescheder et al. 2018)
    penalty_every: int = 1  # steps between penalties, each then as many times as strong
    clip: float = 0.0  # if not 0, the critic's weights stay in [-clip, clip] (paper 3, section 3.2)
    pixel: str = "none"  # "mse" or "l1" between generated and paired real images
    pixel_at: str = (
        "reals"  # or "inputs": between the inputs and the generated images reduced (paper 3, eq. 7)
    )
    pixel_weight: float = 1.0
    grid_weight: float = 0.0  # of the mean square of what an upscaler's own grid leaves in its images
    balance: float = 0.5  # gamma of BEGAN: low for likeness, high for variety
    balance_rate: float = 0.001  # lambda_k of BEGAN (paper 5)
    label_weight: float = 1.0  # of the cross-entropy of labels, where the critic has logits
    content: str = "none"  # or "critic", "lite0" or a file of VGG19's weights: whose features (SRGAN)
    content_depth: int = 0  # which convolution's (scale's of lite0), from 1; 0: the last (VGG54, of VGG19)
    content_weight: float = 0.006  # of their mean squared difference: 1 / 12.75**2 (SRGAN, section 3.2)

    def __post_init__(self) -> None:
        check_choice("objective.adversarial", self.adversarial, (*OBJECTIVES, "none"))
        check_choice("objective.pixel", self.pixel, (*PIXEL_LOSSES, "none"))
        check_choice("objective.pixel_at", self.pixel_at, ("reals", "inputs"))
        for name in ("critic_steps", "penalty_every"):
            if not 1 <= getattr(self, name) <= MOST_STEPS:
                raise PgsrError(
                    f"objective.{name} is {getattr(self, name)}, but must be from 1 to {MOST_STEPS}"
                )
        if not 0 <= self.unrolled_steps <= MOST_UNROLLED:
            raise PgsrError(
                f"objective.unrolled_steps is {self.unrolled_steps}, but must be from 0 to {MOST_UNROLLED}"
            )
        if self.content == "critic" and self.adversarial == "none":
            raise PgsrError("objective.content = 'critic' needs a critic: set objective.adversarial")
        if self.content_depth < 0:
            raise PgsrError(f"objective.content_depth is {self.content_depth}, but must be at least 0")
        check_choice("objective.updates", self.updates, ("alternating", "simultaneous"))
        if self.updates == "simultaneous" and not self._zero_sum():
            raise PgsrError(
                "objective.updates = 'simultaneous' needs a zero-sum objective alone (adversarial = "
                "'wgan-gp', weight 1, one critic step, nothing unrolled, no clip, pixel or content loss): "
                "use 'alternating'"
            )
        if not 0 <= self.balance <= 1:
            raise PgsrError(f"objective.balance is {self.balance}, but must be from 0 to 1")

    def _zero_sum(self) -> bool:
        """Returns whether the generator wants nothing but the opposite of what the critic wants of its
        images."""
        if self.adversarial == "none" or not OBJECTIVES[self.adversarial].zero_sum:
            return False
        alone = self.pixel == self.content == "none" and not self.grid_weight and self.adversarial_weight == 1
        return alone and self.critic_steps == 1 and not self.clip and not self.unrolled_steps

    def penalised(self, step: int) -> bool:
        """Returns whether a step of the critic has a gradient penalty."""
        return step % self.penalty_every == 0


@dataclass(frozen=True)
class Terms:
    """What one network minimises is the sum of `losses`; `scores` are means, to watch and for objectives."""

    losses: dict[str, Tensor]
    scores: dict[str, Tensor]


def critic_terms(
    config: ObjectiveConfig,
    score: Score,
    reals: Images,
    fakes: Images,  # detached
    blend: Tensor,  # [N] in [0, 1): where the gradient penalty looks
    step: int,
    state: ObjectiveState | None = None,
    labels: Tensor | None = None,  # [N]
) -> Terms:
    """The named terms whose sum the critic minimises."""
    lazily = config.penalty_every if config.penalised(step) else 0
    needs_r1 = bool(config.r1 and lazily)
    reals = map_scales(lambda x: x.detach().requires_grad_(needs_r1), reals)
    real, real_logits = _split(score(reals))
    fake, fake_logits = _split(score(fakes))
    losses = {"critic": OBJECTIVES[config.adversarial].critic(real, fake, state or {})}
    if config.drift:
        losses["drift"] = config.drift * real.square().mean()
    if config.gradient_penalty and lazily:
        penalty = gradient_penalty(score, reals, fakes, blend, config.gradient_target)
        losses["gradient penalty"] = config.gradient_penalty * lazily * penalty
    if needs_r1:
        losses["r1"] = 0.5 * config.r1 * lazily * squared_gradient(real, reals).mean()
    if labels is not None and real_logits is not None and fake_logits is not None:
        both = F.cross_entropy(real_logits, labels) + F.cross_entropy(fake_logits, labels)
        losses["labels"] = config.label_weight * both
    means = {"real": real.detach().mean(), "fake": fake.detach().mean(), "sign": real.detach().sign().mean()}
    return Terms(losses, means)


def adversarial_terms(
    config: ObjectiveConfig,
    score: Score,
    fakes: Images,  # with a graph
    reals: Images | None = None,  # where the objective compares
    labels: Tensor | None = None,  # [N]
) -> Terms:
    """The generator's terms of one critic."""
    objective = OBJECTIVES[config.adversarial]
    fake, logits = _split(score(fakes))
    real = _split(score(reals))[0] if objective.compares and reals is not None else None
    losses = {"generator": config.adversarial_weight * objective.generator(fake, real)}
    if labels is not None and logits is not None:
        losses["labels"] = config.label_weight * F.cross_entropy(logits, labels)
    return Terms(losses, {"made": fake.detach().mean()})


def paired_losses(
    config: ObjectiveConfig,
    fakes: Images,  # with a graph
    reals: Images,  # what they should be
    inputs: Tensor | None = None,  # what the generator was given: [N, 3, h, w] where pixel_at is "inputs"
    features: Callable[[Tensor], Tensor] | None = None,  # of images, where contents are compared
    photographed: Tensor | None = None,  # [N] of bool: whether the reals are the inputs' own; None: all are
) -> dict[str, Tensor]:
    """The generator's terms of the real images that it should have made: pixels and contents.

    Where an input has no real image, what is made of it is compared with the input, coarsely, and with
    nothing else.
    """
    losses: dict[str, Tensor] = {}
    if photographed is not None and inputs is not None:
        (image,), (real,) = scales(fakes), scales(reals)
        rows = photographed.view(-1, 1, 1, 1)
        losses["coarse"] = config.pixel_weight * coarse_difference(config, image, inputs, ~rows)
        fakes, reals = image, torch.where(rows, real, image.detach())
    target = reals if config.pixel_at == "reals" else inputs
    if config.pixel != "none" and target is not None:
        generated, targets = at_least_float32(scales(fakes)[0]), at_least_float32(scales(target)[0])
        generated = F.avg_pool2d(generated, generated.shape[-1] // targets.shape[-1])
        losses["pixel"] = config.pixel_weight * PIXEL_LOSSES[config.pixel](generated, targets)
    if config.grid_weight and inputs is not None:
        image = scales(fakes)[0]
        grid = grid_of(at_least_float32(image), image.shape[-1] // inputs.shape[-1])
        losses["grid"] = config.grid_weight * grid.square().mean()
    if features is not None:
        with torch.no_grad():
            targets = at_least_float32(features(scales(reals)[0]))
        difference = F.mse_loss(at_least_float32(features(scales(fakes)[0])), targets)
        losses["content"] = config.content_weight * difference
    return losses


COARSER = 4  # times: what is left of an input has its colours and shapes, and none of its grain


def coarse_difference(config: ObjectiveConfig, images: Tensor, inputs: Tensor, rows: Tensor) -> Tensor:
    """The pixel loss between images and the inputs that they were made of, both reduced until they are
    COARSER times as coarse as the inputs; rows [N, 1, 1, 1] that are False count as equal."""
    wanted = F.avg_pool2d(at_least_float32(inputs), COARSER)
    made = F.avg_pool2d(at_least_float32(images), images.shape[-1] // wanted.shape[-1])
    return PIXEL_LOSSES[config.pixel](made * rows, wanted * rows)


def grid_of(images: Tensor, scale: int) -> Tensor:
    """How far each place in the blocks of scale x scale pixels, which an upscaler makes of one pixel, is from
    the others on average: [N, 3, s h, s w] -> [N, 3, s, s]. Weights differ by place (Odena et al. 2016,
    "Deconvolution and Checkerboard Artifacts"); photographs do not."""
    n, channels, height, width = images.shape
    blocks = images.view(n, channels, height // scale, scale, width // scale, scale)
    means = blocks.mean((2, 4))
    return means - means.mean((2, 3), keepdim=True)


# ----------------------------------------------------------------------------
# Gradients at images.


def squared_gradient(scores: Tensor, images: Images) -> Tensor:
    """|d score / d image|**2 of each image, the mean over scales: [N]."""
    return _mean([g.square().sum(dim=(1, 2, 3)) for g in _image_gradients(scores, scales(images))])


def gradient_penalty(score: Score, reals: Images, fakes: Images, blend: Tensor, target: float) -> Tensor:
    """E[(|grad D(x)| - target)**2] / target**2, x between real and fake (Gulrajani et al. 2017).

    Of a critic of several scales it is the average over its inputs (paper 4, section 3). The division keeps
    the weight's meaning for target != 1 (original code of paper 2, CIFAR-10). vector_norm, not sqrt(sum of
    squares), whose own gradient at zero is not a number.
    """
    share = blend.view(-1, 1, 1, 1)
    between = tuple(
        (real + (fake - real) * share).detach().requires_grad_(True)
        for real, fake in zip(scales(reals), scales(fakes), strict=True)
    )
    scores, _ = _split(score(between if isinstance(reals, tuple) else between[0]))
    norms = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in _image_gradients(scores, between)]
    return _mean([(norm - target).square().mean() for norm in norms]) / target**2


def _image_gradients(scores: Tensor, images: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients of the scores' sum at images, differentiable, in float32 at least.

    A gradient of norm 1 spreads over an image's pixels: at a side of R each has about 1 / R. In float16 that
    is small, so the scores are multiplied by R, a power of two, and the gradients divided by it.
    """
    if not _in_float16(images[0].device.type):
        gradients = torch.autograd.grad(scores.sum(), images, create_graph=True)
        return [at_least_float32(g) for g in gradients]
    factor = float(max(x.shape[-1] for x in images))
    gradients = torch.autograd.grad(scores.sum() * factor, images, create_graph=True)
    return [at_least_float32(g) / factor for g in gradients]


def _in_float16(device: str) -> bool:
    """Returns whether networks compute in float16 here."""
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return False
    return torch.get_autocast_dtype(device) == torch.float16


# ----------------------------------------------------------------------------
# One scale or many, scores with or without logits.


def scales(images: Images) -> tuple[Tensor, ...]:
    """Every scale of the images; one scale is a tuple of one."""
    return images if isinstance(images, tuple) else (images,)


def map_scales(change: Callable[[Tensor], Tensor], images: Images) -> Images:
    """The images with `change` made to every scale."""
    return tuple(map(change, images)) if isinstance(images, tuple) else change(images)


def _split(output: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scores [N] and logits [N, labels], if the critic gives any."""
    output = at_least_float32(output)
    return (output, None) if output.dim() == 1 else (output[:, 0], output[:, 1:])


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(0)
