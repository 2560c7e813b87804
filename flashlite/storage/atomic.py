"""Files and folders that appear only when they are complete, whatever ends the process that writes them.

.NAME.writing-PID-N    not complete yet, or no longer wanted
.NAME.old-PID-N        what was called NAME, moved away so that its successor could take the name; only where the system
                       can't have two names change places in one step

Whoever writes NAME next clears up after processes that died: what was being written goes, and what was moved away comes
back if nothing has taken its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from flashlite.errors import FlashliteError, StoreError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}  # by which renaming fails if a name is in use
_numbers = itertools.count()
_in_use: set[Path] = set()  # by this process; what else bears its number is a dead one's that had the same


@contextlib.contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, which takes its name only when the block has ended well; else nothing is left of it.

    Raises StoreError if `path` exists and `replace` is False, also if another process wrote it in the meantime, or if
    it can't be written.
    """
    try:
        clear_up(path)
        if os.path.lexists(path) and not replace:
            raise _exists(path)
        with _beside(path) as unfinished:
            unfinished.mkdir(parents=True)
            yield unfinished
            _take_place(unfinished, path, replace)
    except FlashliteError:
        raise
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A name to write a file under, which is renamed to `path` only when the block has ended well; else nothing is left
    of it, and what is at `path` stays. Raises OSError."""
    clear_up(path)
    with _beside(path) as unfinished:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())  # or a name could outlive a power cut without its content
        unfinished.replace(path)


def write_file(path: Path, text: str) -> None:
    """Write a text file that appears only when complete. Raises StoreError."""
    try:
        with new_file(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error


def clear_up(path: Path) -> None:
    """Undo what processes that died while they wrote `path` have left beside it."""
    for old in _abandoned(path, "old"):
        _settle(old, path)
    for unfinished in _abandoned(path, "writing"):
        _remove(unfinished)


def _exists(path: Path) -> StoreError:
    return StoreError(f"{path} exists already: choose another name, or replace it with --force")


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` for what isn't complete; whatever bears it in the end is removed."""
    hidden = _hidden(path, "writing")
    try:
        yield hidden
    finally:
        _remove(hidden)
        _in_use.discard(hidden)


def _hidden(path: Path, kind: str) -> Path:
    hidden = (path.parent / f".{path.name}.{kind}-{os.getpid()}-{next(_numbers)}").absolute()
    _in_use.add(hidden)
    return hidden


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _take_place(unfinished: Path, path: Path, replace: bool) -> None:
    """Give a complete folder its name; what had it before is left under the other one, or goes.

    Where two names can't change places, the old folder is moved away first; should another writer take the name in
    between, that one is moved away as well."""
    if replace and _swapped(unfinished, path):
        return
    with contextlib.ExitStack() as moved:
        while not _renamed(unfinished, path):
            if not replace:
                raise _exists(path)
            old = _hidden(path, "old")
            moved.callback(_settle, old, path)
            with contextlib.suppress(FileNotFoundError):  # another writer has moved it away just now
                path.rename(old)


def _swapped(one: Path, other: Path) -> bool:
    """Whether two names could change places in one step, which needs both, Linux, and a file system that knows how."""
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "renameat2"):
        return False
    names = [ctypes.c_char_p(os.fsencode(path)) for path in (one, other)]
    return libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0


def _renamed(folder: Path, path: Path) -> bool:
    """Whether a folder could be given a name, which it can't if the name is taken."""
    try:
        folder.rename(path)
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        return False
    return True


def _settle(old: Path, path: Path) -> None:
    """What was moved away comes back if its name is free, and goes for good if not: under another name, so that nobody
    takes what is half removed for something to bring back."""
    _in_use.discard(old)
    with contextlib.suppress(FileNotFoundError):  # there was nothing to move, or another process settles it too
        if not _renamed(old, path):
            with _beside(path) as unwanted:
                old.rename(unwanted)


def _abandoned(path: Path, kind: str) -> list[Path]:
    """What processes that are gone have left of this kind beside `path`."""
    found = sorted(path.parent.absolute().glob(f".{glob.escape(path.name)}.{kind}-*"))
    return [left for left in found if left not in _in_use and not _has_writer(left)]


def _has_writer(hidden: Path) -> bool:
    """Whether the process that a hidden name belongs to runs, or can't be told."""
    match = re.search(r"-(\d{1,9})(-\d+)?$", hidden.name)
    if match is None or os.name != "posix":  # elsewhere asking a process is not harmless
        return True
    if (pid := int(match[1])) == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, as another user
        return True
    return True
