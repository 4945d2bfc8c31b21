"""What a source of pictures holds: names of those that are used, and every other file with the reason why
it is not.

Readers work on regular files and within the limits that stand here, whatever a file says of itself.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress
from pathlib import Path

from pgsr.errors import PgsrError
from pgsr.files import regular_handle
from pgsr.pictures import SUFFIXES
from pgsr.schema import parsed_json, visible

# What reading a member raises where it is damaged, encrypted or packed in a way Python does not know.
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)

LABELS = "labels.json"  # in a prepared archive: {"names": one a label, "labels": one a picture, in order}
MANIFEST = "manifest.json"

LARGEST_FILE = 2**29  # bytes of a picture's file: more than Pillow's limit of pixels takes at 8 bits
LARGEST_JSON = 2**28  # bytes of labels.json or manifest.json
MOST_FILES = 10_000_000  # in a source
MOST_CLASSES = 100_000  # that labels tell apart

RAW = tuple(
    ".3fr .arw .cr2 .cr3 .dng .erf .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .srw".split()
)
ARCHIVES = tuple(".7z .bz2 .gz .rar .tar .tbz2 .tgz .txz .xz .zip .zst".split())

Read = Callable[[str], bytes]


@dataclass(frozen=True)
class LeftOut:
    """A file that was looked at and is not used."""

    name: str
    why: str


@dataclass(frozen=True)
class Identity:
    """What tells one data set from another."""

    fingerprint: str  # of names and contents, and of labels
    older: str  # by names, sizes and times, as checkpoints of pgsr 0.1 hold it

    def itself(self) -> Identity:
        return self


def no_identity() -> Identity:
    """Of pictures that were not listed, or not here."""
    raise AssertionError("these pictures were not listed")


@dataclass(frozen=True)
class Pictures:
    """Pictures and the order they come in: that of their names, or of the shards."""

    source: Path
    names: tuple[str, ...]
    kind: str = "folder"  # one of sources.READERS
    labels: tuple[int, ...] | None = None  # one a picture, where the source or its annotations have them
    label_names: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()  # tar files that hold some of them, in the folder at `source`
    sizes: tuple[int, ...] = ()  # at which pgsr-data prepared each picture; (): it did not
    filter: str = ""  # by which it reduced them
    left_out: tuple[LeftOut, ...] = ()
    identify: Callable[[], Identity] = field(default=no_identity, repr=False, compare=False)
    whole: Pictures | None = field(default=None, repr=False)  # what these were chosen from

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def identity(self) -> Identity:
        """That of the whole source, whichever of its pictures these are. Contents are read where they have
        changed since they were read last."""
        return self.identify() if self.whole is None else self.whole.identity

    @property
    def fingerprint(self) -> str:
        return self.identity.fingerprint

    def only(self, mask: Sequence[bool], why: str | None = None) -> Pictures:
        """Those of the pictures that the mask marks, with their labels; the others are left out for a
        reason, if one is given."""
        others = () if why is None else (LeftOut(n, why) for n in compress(self.names, _inverted(mask)))
        return replace(
            self,
            names=tuple(compress(self.names, mask)),
            labels=None if self.labels is None else tuple(compress(self.labels, mask)),
            left_out=(*self.left_out, *others),
            whole=self.whole or self,
        )


def _inverted(mask: Iterable[bool]) -> list[bool]:
    return [not chosen for chosen in mask]


def fingerprint_of(lines: Iterable[str]) -> str:
    """Digest of a data set by a line for each thing that matters."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


# ----------------------------------------------------------------------------
# Which names are pictures, and why others are not.


def has_picture_suffix(name: str) -> bool:
    """Returns whether a name ends as pictures' names do."""
    return _suffix(name) in SUFFIXES


def _suffix(name: str) -> str:
    """Returns the ending of a name in lower case. No pathlib, which keeps the parts of a million names."""
    return posixpath.splitext(name)[1].lower()


def hidden_reason(name: str) -> str | None:
    """Returns why a file is passed over by its name alone, whatever it holds."""
    if posixpath.basename(name).startswith("._") or "__MACOSX/" in name:
        return "a note of macOS"
    if _suffix(name) in RAW:
        return f"a camera's raw file ({_suffix(name)}), which is not read"
    return None


def no_picture(name: str) -> str:
    """Returns the reason for a file that does not begin as pictures do."""
    suffix = _suffix(name)
    if suffix in ARCHIVES:
        return f"an archive inside ({suffix}): name it as a source of its own"
    return f"no picture of a format that is read ({suffix or 'no suffix'})"


def by_reason(left_out: Iterable[LeftOut]) -> dict[str, int]:
    """Counts files by their reasons, the commonest first."""
    return dict(Counter(file.why for file in left_out).most_common())


REASONS_TOLD = 6  # on one line


def summary(left_out: Sequence[LeftOut]) -> str:
    """One clause: how many files are left out, and why."""
    reasons = [f"{count} {why}" for why, count in by_reason(left_out).items()]
    more = f", {len(reasons) - REASONS_TOLD} other reasons" if len(reasons) > REASONS_TOLD else ""
    return f"{len(left_out)} left out: {', '.join(reasons[:REASONS_TOLD])}{more}"


def tell(source: Path, used: int, left_out: Sequence[LeftOut], verbose: bool | None = None) -> None:
    """Says on stderr what is left out of a source: how many files for which reason, and each by name if
    `verbose`; None where there is no such option."""
    if not left_out:
        return
    if verbose:
        for file in left_out:
            print(visible(f"left out {file.name}: {file.why}"), file=sys.stderr)
    more = "; --verbose names them" if verbose is False else ""
    print(f"note: {source}: {used} pictures used, {summary(left_out)}{more}", file=sys.stderr)


# ----------------------------------------------------------------------------
# Files within limits.


def check_count(source: Path, count: int) -> None:
    """Raises PgsrError for a source of more files than are read."""
    if count > MOST_FILES:
        raise PgsrError(f"{source} holds more than {MOST_FILES:,} files: name a part of it")


def too_large(size: int) -> OSError:
    """The error for a picture's file beyond the limit; its text is the reason."""
    return OSError(f"{size:,} bytes, more than the {LARGEST_FILE:,} that are read of a picture")


def read_file(path: Path) -> bytes:
    """A picture's file. Raises OSError if it is no regular file, or too large."""
    with open(regular_handle(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_FILE:
            raise too_large(size)
        return file.read(size)


def read_manifest(folder: Path) -> bytes | None:
    """The manifest in a folder, if there is one that can be read."""
    try:
        with open(regular_handle(folder / MANIFEST), "rb") as file:
            return file.read(min(LARGEST_JSON, os.fstat(file.fileno()).st_size))
    except OSError:
        return None


def without_manifest(left_out: Iterable[LeftOut], sizes: Sequence[int]) -> tuple[LeftOut, ...]:
    """What is left out, but for a manifest that was read."""
    return tuple(file for file in left_out if not sizes or file.name != MANIFEST)


def prepared_sizes(manifest: bytes | None) -> tuple[int, ...]:
    """The sides at which pgsr-data prepared each picture, by its manifest; () by another's, or none."""
    try:
        content = parsed_json(manifest or b"")
        if {"fingerprint", "sizes", "filter"} <= content.keys():
            sizes = tuple(content["sizes"])
            return sizes if all(type(size) is int and size > 0 for size in sizes) else ()
    except (ValueError, TypeError, AttributeError):
        pass
    return ()


def prepared_filter(manifest: bytes | None) -> str:
    """The filter by which pgsr-data reduced them; "" by another's manifest, or none."""
    if not prepared_sizes(manifest):
        return ""
    name = parsed_json(manifest or b"")["filter"]
    return name if isinstance(name, str) else ""
