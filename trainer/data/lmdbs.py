"""LSUN: an lmdb folder with a picture's file a key.

lmdb maps its file and follows what stands there, so a damaged page may end the process. A process of its own
walks the whole database first, once for each state of the file; this one reads only what that one could.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError, missing_package

from .contents import remembered
from .listing import LARGEST_FILE, Identity, Pictures, Read, check_count, fingerprint_of, too_large

DATA = "data.mdb"


def _package() -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise missing_package("an lmdb of pictures", "lmdb", error) from error
    return lmdb


def _open(source: Path) -> Any:
    lmdb = _package()
    try:
        return lmdb.open(str(source), readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise PgsrError(f"{source} is damaged, or not an lmdb: {error}") from error


def list_lmdb(source: Path) -> Pictures:
    """Raises PgsrError if the database is damaged, or the package that reads it is missing."""
    _package()
    crc = remembered(source, [DATA], walked)[DATA].crc
    with contextlib.closing(_open(source)) as database, database.begin() as transaction:
        keys = [bytes(key) for key in transaction.cursor().iternext(keys=True, values=False)]
        last = database.info()["last_txnid"]
    names = tuple(key.decode("latin-1") for key in keys)  # any bytes, and back again
    return Pictures(source, names, "lmdb", identify=partial(_identity, source, names, crc, last))


def _identity(source: Path, names: tuple[str, ...], crc: int, last: int) -> Identity:
    size = (source / DATA).stat().st_size
    older = fingerprint_of([f"{last} {size}", *names])
    return Identity(fingerprint_of([f"lmdb {crc:08x}", *names]), older)


@contextmanager
def reading_lmdb(pictures: Pictures) -> Iterator[Read]:
    """Reads pictures by their keys."""
    database = _open(pictures.source)

    def read(name: str) -> bytes:
        with database.begin(buffers=True) as transaction:
            data = transaction.get(name.encode("latin-1"))
            if data is None:
                raise KeyError(name)
            if len(data) > LARGEST_FILE:
                raise too_large(len(data))
            return bytes(data)

    try:
        yield read
    finally:
        database.close()


# ----------------------------------------------------------------------------
# In a process of its own.


def walked(data: Path) -> int:
    """CRC-32 over every key and value, in order. Raises PgsrError if they cannot all be read."""
    source = data.parent
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            result = pool.submit(_walk, source).result()
    except BrokenProcessPool as error:
        raise PgsrError(f"{source} is damaged: reading it ended the process; get it again") from error
    if isinstance(result, str):
        raise PgsrError(result)
    return result


def _walk(source: Path) -> int | str:
    """The sum, or what is wrong."""
    lmdb = _package()
    try:
        with contextlib.closing(_open(source)) as database:
            pages, page = database.info()["last_pgno"] + 1, database.stat()["psize"]
            if (source / DATA).stat().st_size < pages * page:
                return f"{source / DATA} is cut short: it should have {pages * page:,} bytes; get it again"
            return _sum(source, database)
    except lmdb.Error as error:
        return f"{source} is damaged: {error}; get it again"
    except PgsrError as error:
        return str(error)


def _sum(source: Path, database: Any) -> int:
    crc, count, expected = 0, 0, database.stat()["entries"]
    check_count(source, expected)
    with database.begin(buffers=True) as transaction:
        for key, value in transaction.cursor():
            count += 1
            found = transaction.get(key)
            if count > expected or found is None or len(found) != len(value):
                raise PgsrError(f"{source} is damaged: its index is in disorder; get it again")
            crc = zlib.crc32(value, zlib.crc32(key, crc))
    if count != expected:
        raise PgsrError(f"{source} is damaged: {count} of {expected} entries are there; get it again")
    return crc
