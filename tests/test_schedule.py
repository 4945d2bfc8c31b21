"""The schedule: images shown -> (resolution, alpha, batch), a pure function."""

from __future__ import annotations

import pytest

from pgsr.errors import PgsrError
from pgsr.trainer.step.schedule import Schedule, build
from pgsr.trainer.step.tables import Override, ScheduleConfig

K = 1000

# Paper 2, section A.1: 800k images for each fade and each stable phase; 16 images a batch up to 128,
# then 14, 6 and 3.
PAPER = ScheduleConfig(
    resolution=1024,
    fade_images=800 * K,
    stable_images=800 * K,
    batch=16,
    at={"256": Override(batch=14), "512": Override(batch=6), "1024": Override(batch=3)},
)

PAPER_TABLE = """
stable 4      16   800000
fade 8        16   800000
stable 8      16   800000
fade 16       16   800000
stable 16     16   800000
fade 32       16   800000
stable 32     16   800000
fade 64       16   800000
stable 64     16   800000
fade 128      16   800000
stable 128    16   800000
fade 256      14   800002
stable 256    14   800002
fade 512      6    800004
stable 512    6    800004
fade 1024     3    800001
stable 1024   3    800001
"""

SMALL = ScheduleConfig(
    resolution=32,
    fade_images=50,
    stable_images=30,
    batch=8,
    at={"4": Override(stable_images=20), "16": Override(batch=6, fade_images=0), "32": Override(batch=3)},
)


def test_the_papers_schedule_phase_by_phase():
    rows = [f"{p.name:<13} {p.batch:<4} {p.images}" for p in build(PAPER).phases]
    assert rows == PAPER_TABLE.strip().splitlines()


@pytest.mark.parametrize(
    ("shown", "resolution", "batch", "alpha"),
    [
        (0, 4, 16, 1.0),
        (799_984, 4, 16, 1.0),
        (800_000, 8, 16, 16 / 800_000),
        (1_200_000, 8, 16, 400_016 / 800_000),
        (1_599_984, 8, 16, 1.0),
        (1_600_000, 8, 16, 1.0),
        (2_400_000, 16, 16, 16 / 800_000),
        (8_800_000, 256, 14, 14 / 800_002),
        (8_800_000 + 1_600_004, 512, 6, 6 / 800_004),
        (8_800_000 + 1_600_004 + 1_600_008, 1024, 3, 3 / 800_001),
        (8_800_000 + 1_600_004 + 1_600_008 + 800_001, 1024, 3, 1.0),
    ],
)
def test_the_papers_schedule_at_points(shown: int, resolution: int, batch: int, alpha: float):
    stage = build(PAPER).at(shown)
    assert (stage.resolution, stage.batch) == (resolution, batch)
    assert stage.alpha == pytest.approx(alpha, rel=1e-12)


def walk(schedule: Schedule):
    """Every stage from the first step to the last, as the loop meets them."""
    shown = 0
    while shown < schedule.total_images:
        stage = schedule.at(shown)
        yield stage
        shown += stage.batch * schedule.images_per_step
    assert shown == schedule.total_images


@pytest.mark.parametrize("critic_steps", [1, 2, 5])
def test_walking_and_asking_agree(critic_steps: int):
    """Phase by phase with a counter of its own, against `at` asked backwards."""
    schedule = build(SMALL, critic_steps)
    stages = {s.images_shown: s for s in walk(schedule)}
    assert {shown: schedule.at(shown) for shown in reversed(stages)} == stages
    step = 0
    for phase in schedule.phases:
        steps = phase.images // (phase.batch * critic_steps)
        assert steps * phase.batch * critic_steps == phase.images
        for k in range(1, steps + 1):
            stage = stages[phase.start + (k - 1) * phase.batch * critic_steps]
            assert stage.phase is phase
            assert stage.step == step
            assert stage.alpha == pytest.approx(k / steps if phase.fading else 1.0)
            assert stage.begins_phase == (k == 1)
            step += 1
    assert step == len(stages)


@pytest.mark.parametrize("critic_steps", [1, 3])
def test_phases_are_whole_steps_and_follow_each_other(critic_steps: int):
    phases = build(SMALL, critic_steps).phases
    assert [p.name for p in phases] == ["stable 4", "fade 8", "stable 8", "stable 16", "fade 32", "stable 32"]
    asked = [20, 50, 30, 30, 50, 30]
    for phase, images in zip(phases, asked, strict=True):
        a_step = phase.batch * critic_steps
        assert phase.images % a_step == 0
        assert images <= phase.images < images + a_step
    assert [p.start for p in phases] == [0, *(p.end for p in phases)][:-1]


def test_every_fade_ends_at_exactly_one():
    for config in (PAPER, SMALL):
        schedule = build(config)
        for phase in schedule.phases:
            last = schedule.at(phase.end - phase.batch)
            assert last.phase is phase
            assert last.alpha == 1.0


def test_alpha_never_falls_within_a_fade_and_is_never_zero():
    schedule = build(SMALL)
    for phase in schedule.phases:
        alphas = [s.alpha for s in walk(schedule) if s.phase is phase]
        assert alphas == sorted(alphas)
        assert 0 < alphas[0] <= alphas[-1] == 1.0


def test_after_the_end_the_last_phase_goes_on():
    schedule = build(SMALL)
    stage = schedule.at(schedule.total_images)
    assert (stage.phase, stage.alpha) == (schedule.phases[-1], 1.0)
    assert stage.step == len(list(walk(schedule)))


def test_without_growing_there_is_one_phase():
    schedule = build(ScheduleConfig(resolution=48, start_resolution=48, stable_images=100, batch=10))
    assert [(p.name, p.images) for p in schedule.phases] == [("stable 48", 100)]


def test_a_schedule_that_shows_nothing_is_an_error():
    with pytest.raises(PgsrError, match="shows no images"):
        build(ScheduleConfig(resolution=8, fade_images=0, stable_images=0))


def test_images_at_a_resolution_count_from_its_fade():
    plan = build(ScheduleConfig(16, fade_images=80, stable_images=160, batch=8))
    counted = [plan.at(shown).images_at_resolution for shown in (0, 152, 160, 240, 392, 400, 472)]
    assert counted == [0, 152, 0, 80, 232, 0, 72]


# ----------------------------------------------------------------------------
# Epochs.

EPOCHS = ScheduleConfig(
    resolution=16,
    fade_epochs=0.5,
    stable_epochs=2.0,
    batch=4,
    at={"8": Override(fade_epochs=1.5, stable_images=24), "16": Override(stable_epochs=0.25)},
)


def test_epochs_are_passes_over_the_pictures():
    """Of the schedule or of one resolution, whose images go before the schedule's epochs."""
    phases = build(EPOCHS, pictures=40).phases
    assert [(p.name, p.images) for p in phases] == [
        ("stable 4", 80),
        ("fade 8", 60),
        ("stable 8", 24),
        ("fade 16", 20),
        ("stable 16", 12),  # 10, in whole steps
    ]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (ScheduleConfig(16, fade_epochs=1.0), "fade"),
        (ScheduleConfig(16, stable_epochs=1.0), "stable"),
        (ScheduleConfig(16, at={"8": Override(fade_epochs=1.0)}), "fade"),
        (ScheduleConfig(16, at={"8": Override(stable_epochs=1.0)}), "stable"),
    ],
)
def test_epochs_of_nobody_knows_what(config: ScheduleConfig, name: str):
    with pytest.raises(PgsrError, match=f"schedule.{name}_epochs counts passes over the data"):
        build(config)


def test_steps_of_a_phase_are_its_images_by_those_of_a_step():
    schedule = build(SMALL, critic_steps=3)
    assert [schedule.steps(phase) for phase in schedule.phases] == [1, 3, 2, 2, 6, 4]


def test_alpha_stays_one_between_the_last_step_and_the_end_of_a_fade():
    """A run may be asked about any number of images, such as one that another batch has left."""
    schedule = build(SMALL)
    fade = next(phase for phase in schedule.phases if phase.fading)
    assert [schedule.at(fade.end - k).alpha for k in (8, 7, 1)] == [1.0, 1.0, 1.0]
