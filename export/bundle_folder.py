"""A finished bundle -> the folder that the user named, where an older bundle may stand.

What is replaced or removed is what an older bundle's manifest names, and engines built from its graphs. A
folder with anything else in it is left alone.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pgsr import bundle
from pgsr.errors import PgsrError
from pgsr.files import cannot_write, is_temporary, make_folder, remove_leftovers, temporary_beside
from pgsr.tensorrt.engines import LIBRARIES

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # renameat2(2)


def check_replaceable(out: Path) -> None:
    """Raises PgsrError unless a bundle may be written to `out`: nothing stands there, or a bundle alone."""
    if not out.exists():
        return
    if not out.is_dir():
        raise PgsrError(f"{out} exists and is not a bundle: name another folder")
    found = {name for name in os.listdir(out) if not is_temporary(name)}
    if found and bundle.MANIFEST not in found:
        raise PgsrError(f"{out} exists and is not a bundle: name another folder")
    foreign = sorted(found - parts(out)) if found else []
    if foreign:
        raise PgsrError(
            f"{out} holds {foreign[0]!r}, which is no part of the bundle there: "
            "move it away, or name another folder"
        )


def parts(folder: Path) -> set[str]:
    """Returns the names in a bundle's folder that belong to it: manifest, graphs, engines and their sidecars.

    Raises PgsrError if its manifest is not a bundle's.
    """
    try:
        graphs = [graph.file for graph in bundle.read(folder).graphs]
    except PgsrError as error:
        raise PgsrError(f"{folder} holds another manifest than a bundle's: name another folder") from error
    stems = "|".join(re.escape(Path(file).stem) for file in graphs)
    engine = re.compile(rf"({stems})\.({'|'.join(LIBRARIES)})\..+\.engine(\.json)?")
    names = {entry.name for entry in os.scandir(folder) if not entry.is_dir(follow_symlinks=False)}
    return {name for name in names if name in (bundle.MANIFEST, *graphs) or engine.fullmatch(name)}


@contextmanager
def replacing_bundle(out: Path) -> Iterator[Path]:
    """Gives a folder to write a bundle in, which then becomes `out` in one step.

    A link that `out` is stays one. If the block fails, what stood there is untouched; what killed exports
    have left beside it is removed first. Raises PgsrError if `out` cannot be written or is something else.
    """
    out = Path(os.path.realpath(out))
    stays = _stays(out)
    new = temporary_beside(out / out.name if stays else out)
    try:
        remove_leftovers(make_folder(new.parent), of=out)
        make_folder(new)
        yield new
        check_replaceable(out)
        older = None
        if stays:
            _move_into(new, out)
        else:
            older = _exchange(new, out)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, OSError):
            raise cannot_write(out, error) from error
        raise
    if older is not None:
        _remove(older)


def _stays(out: Path) -> bool:
    """Returns whether a folder cannot be renamed, or should not: where we are, a mount, not our parent."""
    if not out.is_dir():
        return False
    return os.path.samefile(out, os.curdir) or os.path.ismount(out) or not os.access(out.parent, os.W_OK)


def _remove(older: Path) -> None:
    """Removes a bundle's parts and its folder, which stays if something else was put there."""
    for name in parts(older):
        (older / name).unlink()
    with suppress(OSError):
        older.rmdir()


def _move_into(new: Path, out: Path) -> None:
    """Moves the parts one by one, the manifest last: in between, the older one refuses the new graphs."""
    older = parts(out) if (out / bundle.MANIFEST).exists() else set()
    names = sorted(os.listdir(new), key=lambda name: (name == bundle.MANIFEST, name))
    for name in names:
        os.replace(new / name, out / name)
    new.rmdir()
    for name in older.difference(names):
        (out / name).unlink(missing_ok=True)


def _exchange(new: Path, out: Path) -> Path | None:
    """Lets the two names change places at once, if the file system can; returns where the older bundle is."""
    if not out.exists() or not os.listdir(out):
        os.rename(new, out)
        return None
    if _renamed_both(new, out):
        return new
    older = temporary_beside(new)
    os.rename(out, older)
    try:
        os.rename(new, out)
    except OSError:
        os.rename(older, out)
        raise
    return older


def _renamed_both(a: Path, b: Path) -> bool:
    """renameat2(2) with RENAME_EXCHANGE; False where the kernel or the file system does not know it."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    failed: int = function(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE)
    return not failed
