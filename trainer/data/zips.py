"""Pictures in a zip: FFHQ's with its nested folders, CelebA's, pgsr-data's."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pgsr.errors import PgsrError
from pgsr.first_bytes import HEAD_BYTES, begins_like_picture
from pgsr.schema import parsed_json

from .listing import (
    LABELS,
    LARGEST_FILE,
    LARGEST_JSON,
    MANIFEST,
    UNREADABLE,
    Identity,
    LeftOut,
    Pictures,
    Read,
    check_count,
    fingerprint_of,
    has_picture_suffix,
    hidden_reason,
    no_picture,
    prepared_filter,
    prepared_sizes,
    too_large,
)

ENCRYPTED = 0x1  # in a member's flags


def list_zip(source: Path) -> Pictures:
    """Raises PgsrError if the file is no zip, or labels in it do not fit."""
    try:
        with zipfile.ZipFile(source) as archive:
            check_count(source, len(archive.filelist))
            return _list(source, archive)
    except (*UNREADABLE, NotImplementedError) as error:
        raise PgsrError(f"{source} is not a zip archive of pictures: {error}") from error


def _list(source: Path, archive: zipfile.ZipFile) -> Pictures:
    members, left_out = [], []
    for member in archive.infolist():
        if member.filename.endswith("/"):  # ZipInfo.is_dir, which fails on a name without letters
            continue
        why = _why_not(archive, member)
        if why is None:
            members.append(member)
        else:
            left_out.append(LeftOut(member.filename, why))
    if not members and any(file.name.endswith("data.mdb") for file in left_out):
        raise PgsrError(f"{source} holds an lmdb: unzip it and name the folder with data.mdb in it")
    members.sort(key=lambda member: member.filename)
    names = tuple(member.filename for member in members)
    labels = [m for m in archive.infolist() if m.filename == LABELS]
    identity = fingerprint_of(f"{m.filename} {m.file_size} {m.CRC:08x}" for m in (*members, *labels))
    manifest = _small_member(archive, MANIFEST)
    sizes = prepared_sizes(manifest)
    label_names, own_labels = _labels(source, archive, names)
    ours = {MANIFEST: bool(sizes), LABELS: own_labels is not None}
    return Pictures(
        source,
        names,
        "zip",
        own_labels,
        label_names,
        sizes=sizes,
        filter=prepared_filter(manifest),
        left_out=tuple(file for file in left_out if not ours.get(file.name)),
        identify=Identity(identity, identity).itself,
    )


def _why_not(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str | None:
    """Why a member is not used; None for a picture."""
    name = member.filename
    if archive.NameToInfo[name] is not member:
        return "replaced by a later member of the same name"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "a link in a zip, which is not followed"
    why = hidden_reason(name)
    if why is not None or has_picture_suffix(name):
        return why
    if member.flag_bits & ENCRYPTED:
        return "encrypted"
    try:
        with unpacking(), archive.open(member) as file:
            return None if begins_like_picture(file.read(HEAD_BYTES)) else no_picture(name)
    except (*UNREADABLE, NotImplementedError):
        return no_picture(name)


def _small_member(archive: zipfile.ZipFile, name: str) -> bytes | None:
    """A member that describes others, if there is one within the limit."""
    member = archive.NameToInfo.get(name)
    if member is None or member.file_size > LARGEST_JSON:
        return None
    with unpacking():
        return archive.read(member)


@contextmanager
def unpacking() -> Iterator[None]:
    """Turns what a way of packing raises of its own, as LZMA and Zstandard do, into OSError."""
    try:
        yield
    except UNREADABLE:
        raise
    except Exception as error:
        raise OSError(f"it cannot be unpacked: {error or type(error).__name__}") from error


def _labels(
    source: Path, archive: zipfile.ZipFile, names: Sequence[str]
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """The labels' names, and each picture's label; ((), None) if the archive has none by numbers."""
    if LABELS not in archive.NameToInfo or not all(PurePosixPath(n).stem.isdecimal() for n in names):
        return (), None
    try:
        content = parsed_json(_small_member(archive, LABELS) or b"")
        label_names, every = tuple(map(str, content["names"])), content["labels"]
        labels = tuple(every[int(PurePosixPath(name).stem)] for name in names)
        if any(type(label) is not int or not 0 <= label < len(label_names) for label in labels):
            raise ValueError(f"{len(every)} labels of {len(label_names)} names for {len(names)} pictures")
    except (*UNREADABLE, IndexError, TypeError) as error:
        raise PgsrError(f"{LABELS} of {source} does not fit ({error}): prepare it again") from error
    return label_names, labels


@contextmanager
def reading_zip(pictures: Pictures) -> Iterator[Read]:
    """Reads members by their names, from several threads at once."""
    with zipfile.ZipFile(pictures.source) as archive:

        def read(name: str) -> bytes:
            member = archive.getinfo(name)
            if member.file_size > LARGEST_FILE:
                raise too_large(member.file_size)
            with unpacking():
                return archive.read(member)

        yield read
