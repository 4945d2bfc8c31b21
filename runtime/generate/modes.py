"""What the modes of pgsr-generate make, with a line of progress, and what they tell of it.

Each takes what the command's options name, makes it or with --dry-run only says what would be made, and
ends with one sentence, or one object of JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from io import RawIOBase, UnsupportedOperation
from pathlib import Path
from typing import Any, BinaryIO

import click

from pgsr import bundle
from pgsr.cli import emit
from pgsr.errors import PgsrError

from ..memory import share_arenas
from ..output.archives import form_of
from ..synthesizer import Synthesizer
from .job import STDOUT, Job
from .latents import Source
from .pages import Grid, shows, write_grid
from .progress import Progress, SetProgress
from .shards import SHARD_SIZE, Shards, generate_shards, models_of, present, wanted
from .store import open_store
from .video import VideoJob, description, make_video
from .write import generate, survey


@contextlib.contextmanager
def shown(progress: Progress | SetProgress, stopped: Callable[[], str]) -> Iterator[None]:
    """Ends the line of progress, however its work ends; Ctrl-C becomes a sentence."""
    try:
        yield
    except KeyboardInterrupt:
        raise PgsrError(stopped()) from None
    finally:
        progress.finish()


def opened(
    model: Path | None,
    truncation: float | None,
    label: int | None,
    batch: int,
    device: str,
    precision: str,
    backend: str,
    tile: int,
    threads: int,
    from_latents: Path | None = None,
) -> Synthesizer:
    """The synthesizer that the shared options describe. Latents of a file are drawn as they are, unless the
    user says how far to turn them."""
    if from_latents is not None and truncation is None:
        truncation = 1.0
    if label is not None:
        _check_label(model, label)
    share_arenas()
    return Synthesizer(model, device, precision, backend, batch, threads, truncation, tile)


def _check_label(model: Path | None, label: int) -> None:
    """Raises PgsrError unless that is the label which the bundle's graph draws."""
    model_bundle = bundle.read(bundle.shipped() if model is None else model)
    own = model_bundle.provenance.get("generator", {}).get("label")
    if own is None:
        raise PgsrError(f"--label {label}: {model_bundle.name} was trained without labels: leave it out")
    if own != label:
        raise PgsrError(
            f"--label {label}: the graph of {model_bundle.name} draws label {own} alone, because the label "
            f"is fixed at export: pgsr-export --label {label}"
        )


def _machinery(synthesizer: Synthesizer) -> dict[str, Any]:
    return {
        "model": synthesizer.bundle.name,
        "truncation": synthesizer.truncation,
        "precision": synthesizer.graph.precision,
        "provider": synthesizer.provider,
        "batch": synthesizer.batch,
    }


# ----------------------------------------------------------------------------
# Faces to a folder, an archive or a stream.


def faces(synthesizer: Synthesizer, job: Job, dry_run: bool, as_json: bool) -> None:
    """Makes the faces that are missing."""
    if dry_run:
        _plan(synthesizer, job, as_json)
        return
    count, progress = len(job.positions), Progress(len(job.positions))
    again = "" if job.out == STDOUT else "; the same command again makes the rest"
    with shown(progress, lambda: f"stopped at about {progress.count} of {count} faces{again}"):
        result = generate(synthesizer, job, progress, _raw_stdout() if job.out == STDOUT else None)
    numbers = {
        "made": result.made,
        "present": result.present,
        "seconds": round(result.seconds, 3),
        "images_per_second": round(result.images_per_second, 2),
        "sheet": str(job.sheet) if job.sheet else None,
        "latents": str(job.latents) if job.latents else None,
    }
    text = (
        f"{job.out}: {result.made} faces made, {result.present} already there, {result.seconds:.1f} s "
        f"({result.images_per_second:.1f} images/s on {synthesizer.provider})"
    )
    report = {**_description(synthesizer, job), **numbers}
    if job.out == STDOUT:
        click.echo(json.dumps(report) if as_json else text, err=True)  # stdout has the pixels
    else:
        emit(report, text, as_json)


def _plan(synthesizer: Synthesizer, job: Job, as_json: bool) -> None:
    missing, count = survey(synthesizer, job), len(job.positions)
    report = _description(synthesizer, job)
    text = (
        f"{job.out}: would make {missing} of {count} faces of {synthesizer.size} x {synthesizer.size} "
        f"as {report['format']} on {synthesizer.provider}"
    )
    emit({**report, "missing": missing, "present": count - missing}, text, as_json)


def _raw_stdout() -> BinaryIO | RawIOBase:
    """The standard output without its buffer; with it where there is none below, as in tests."""
    try:
        return open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
    except UnsupportedOperation:
        return sys.stdout.buffer


def _description(synthesizer: Synthesizer, job: Job) -> dict[str, Any]:
    """Returns what every result says of what was used."""
    return {
        "out": str(job.out),
        **job.faces.identity,
        "start": job.faces.number(0),
        "count": len(job.positions),
        "shard": f"{job.shard[0]}/{job.shard[1]}",
        "size": synthesizer.size,
        **({"format": "raw"} if job.out == STDOUT else _form(job)),
        **_machinery(synthesizer),
    }


def _form(job: Job) -> dict[str, Any]:
    return {"format": job.encoding.format, "encoder": job.encoding.codec.name}


# ----------------------------------------------------------------------------
# Shards, here or on a cluster.


def shards_of(job: Job, out: Path | str, size: int | None, form: str | None) -> Shards:
    """What --shard-size and --shard-form name. Raises PgsrError for an output that is no folder."""
    if isinstance(out, Path) and (out == STDOUT or form_of(out) is not None):
        raise PgsrError(f"--out {out} is not a folder for shards: name a folder, or s3://BUCKET/FOLDER")
    return Shards(job, SHARD_SIZE if size is None else size, form or "tar")


def shards_here(
    synthesizer: Synthesizer, shards: Shards, out: Path | str, mixed: bool, dry_run: bool, as_json: bool
) -> None:
    """Makes the shards that are missing, in this process."""
    store = open_store(out)
    if dry_run:
        own, models = wanted(synthesizer, shards), models_of(synthesizer.bundle)
        _plan_shards(shards, present(store, shards, own, models, mixed), out, as_json)
        return
    progress = SetProgress(shards.job.count)
    with shown(progress, lambda: _set_stopped(progress)):
        result = generate_shards(synthesizer, shards, store, mixed, progress)
    numbers = {
        "made": result.made,
        "present": result.present,
        "seconds": round(result.seconds, 3),
        "images_per_second": round(result.images_per_second, 2),
    }
    _tell_set({**_set_description(shards, out), **_machinery(synthesizer), **numbers}, as_json)


def shards_on_ray(
    address: str,
    shards: Shards,
    out: Path | str,
    settings: dict[str, Any],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Makes the shards that are missing, on a Ray cluster, whose side is loaded for nothing else."""
    from pgsr.crew import connected

    from ..machinery import Machinery
    from .on_ray import Driver, Plan

    model, label = settings.pop("model"), settings.pop("label")
    truncation, mixed = settings.pop("truncation"), settings.pop("mixed")
    if label is not None:
        _check_label(model, label)
    plan = Plan(shards, out, model, truncation, Machinery(**settings), mixed)
    there = plan.present(open_store(out))
    if dry_run:
        _plan_shards(shards, there, out, as_json)
        return
    progress = SetProgress(shards.job.count)
    with shown(progress, lambda: _set_stopped(progress)), connected(address) as ray:
        driver = Driver(ray, plan, progress)
        driver.run()
    _tell_set({**_set_description(shards, out), **driver.description()}, as_json)


def _set_stopped(progress: SetProgress) -> str:
    return f"stopped at {progress.words}; the same command again makes the rest"


def _set_description(shards: Shards, out: Path | str) -> dict[str, Any]:
    return {
        "out": str(out),
        **shards.job.faces.identity,
        "start": shards.job.faces.number(0),
        "count": shards.job.count,
        "shard_size": shards.size,
        "shards_in_all": shards.count,
        **_form(shards.job),
    }


def _plan_shards(shards: Shards, there: set[int], out: Path | str, as_json: bool) -> None:
    missing = shards.count - len(there)
    text = f"{out}: would make {missing} of {shards.count} shards, {shards.job.count} faces in all"
    report = {**_set_description(shards, out), "missing": missing, "present": shards.faces(there)}
    emit(report, text, as_json)


def _tell_set(report: dict[str, Any], as_json: bool) -> None:
    text = (
        f"{report['out']}: {report['shards_in_all']} shards, {report['made']} faces made, "
        f"{report['present']} already there, {report['seconds']:.1f} s "
        f"({report['images_per_second']:.1f} images/s)"
    )
    emit(report, text, as_json)


# ----------------------------------------------------------------------------
# A video, or a page.


def video(synthesizer: Synthesizer, film: VideoJob, threads: int, dry_run: bool, as_json: bool) -> None:
    """Makes an interpolation."""
    report = {**description(film), "size": synthesizer.size, **_machinery(synthesizer)}
    long = f"{film.frames} frames, {film.frames / film.fps:.1f} s at {film.fps} Hz"
    if dry_run:
        emit(report, f"{film.out}: would make {long}, on {synthesizer.provider}", as_json)
        return
    progress = Progress(film.frames, "frames")
    with shown(
        progress, lambda: f"stopped at frame {progress.count} of {film.frames}; {film.out} is not made"
    ):
        seconds = make_video(synthesizer, film, threads, progress)
    speed = film.frames / seconds
    numbers = {"seconds": round(seconds, 3), "frames_per_second": round(speed, 2)}
    text = f"{film.out}: {long}, in {seconds:.1f} s ({speed:.1f} frames/s on {synthesizer.provider})"
    emit({**report, **numbers}, text, as_json)


def grid(synthesizer: Synthesizer, source: Source, page: Grid, dry_run: bool, as_json: bool) -> None:
    """Makes one picture of many faces."""
    source.check(synthesizer.bundle.latent_size)
    count = min(len(shows(source, page)), page.most)
    report = {"out": str(page.path), **source.identity, "count": count, **_machinery(synthesizer)}
    if not dry_run:
        progress = Progress(count)
        with shown(progress, lambda: f"stopped at face {progress.count} of {count}; {page.path} is not made"):
            write_grid(synthesizer, source, page, progress)
    words = "would show " if dry_run else ""
    emit(report, f"{page.path}: {words}{count} faces, on {synthesizer.provider}", as_json)
