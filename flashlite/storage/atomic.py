"""Files and folders that appear only when they are complete, whatever ends the process that writes them.

.NAME.writing-PID-N    not complete yet, or no longer wanted
.NAME.old-PID-N        what was called NAME, moved away so that its successor could take the name; only where the system
                       can't have two names change places in one step

The next process that writes NAME clears up after those that died: it removes a file or folder that was not complete,
and moves an old one back if nothing has taken its place.
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

from flashlite.errors import StoreError, one_line

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}  # of a rename to a name that is in use
HIDDEN = re.compile(r"\..+\.(?:writing|old)-(\d{1,9})(?:-\d+)?")
_numbers = itertools.count()
_in_use: set[Path] = set()  # hidden names of this process; another with its number was left by a dead process


@contextlib.contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, which gets the name `path` only when the block has ended well; else nothing is left of it.

    Raises StoreError if the folder can't be written, or if `replace` is False and there is something at `path`, even if
    another process wrote it only after this one began.
    """
    with one_line(path, StoreError, "cannot be written"):
        clear_up(path)
        if os.path.lexists(path) and not replace:
            raise _exists(path)
        with _beside(path) as unfinished:
            unfinished.mkdir(parents=True)
            yield unfinished
            _take_place(unfinished, path, replace)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A name to write a file under. It is renamed to `path` only when the block has ended well.

    Otherwise the new file is removed and an old one at `path` stays. Raises OSError.
    """
    clear_up(path)
    with _beside(path) as unfinished:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())  # or a name could outlive a power cut without its content
        unfinished.replace(path)


def write_file(path: Path, text: str) -> None:
    """Write a text file that appears only when complete. Raises StoreError."""
    with one_line(path, StoreError, "cannot be written"), new_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def clear_up(path: Path) -> None:
    """Remove, or move back, all that processes which died while they wrote `path` have left beside it."""
    for old in _abandoned(path, "old"):
        _settle(old, path)
    for unfinished in _abandoned(path, "writing"):
        _remove(unfinished)


def is_hidden(path: Path) -> bool:
    """Whether a name is one of those under which files and folders are written."""
    return HIDDEN.fullmatch(path.name) is not None


def writer(path: Path) -> int | None:
    """The process that writes `path` now, which may be hidden itself; None if there is none, as far as can be told."""
    for hidden in [path.absolute()] if is_hidden(path) else [*_beside_of(path, "old"), *_beside_of(path, "writing")]:
        if (match := HIDDEN.fullmatch(hidden.name)) and (hidden in _in_use or _has_writer(hidden)):
            return int(match[1])
    return None


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, so that it is never half there under its name. No link in it is followed.

    Raises StoreError if it can't be removed.
    """
    with one_line(path, StoreError, "cannot be removed"):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        hidden = _hidden(path, "writing")
        path.rename(hidden)
        _in_use.discard(hidden)  # what is left of it if this fails is nobody's
        shutil.rmtree(hidden)


def _exists(path: Path) -> StoreError:
    return StoreError(f"{path} exists already: choose another name, or replace it with --force")


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` for a file or folder that isn't complete; in the end it is removed if it is there."""
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
    """Give a complete folder its name. The folder that had the name is removed, here or by the caller.

    Where two names can't change places in one step, the old folder is moved away first. If another writer takes the
    name in between, its folder is moved away as well.
    """
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
    """Whether two names have changed places in one step. Both must exist, on Linux, on a file system that can do it."""
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "renameat2"):
        return False
    names = [ctypes.c_char_p(os.fsencode(path)) for path in (one, other)]
    return libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0


def _renamed(folder: Path, path: Path) -> bool:
    """Whether a folder has got a name, which fails if the name is taken."""
    try:
        folder.rename(path)
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        return False
    return True


def _settle(old: Path, path: Path) -> None:
    """Give an old folder that was moved away its name back, or remove it if the name is taken.

    It is removed under another name, so that no process gives half a folder its name back.
    """
    _in_use.discard(old)
    with contextlib.suppress(FileNotFoundError):  # there was nothing to move, or another process has done this too
        if not _renamed(old, path):
            with _beside(path) as unwanted:
                old.rename(unwanted)


def _abandoned(path: Path, kind: str) -> list[Path]:
    """The hidden files and folders of this kind beside `path` whose process is gone."""
    return [left for left in _beside_of(path, kind) if left not in _in_use and not _has_writer(left)]


def _beside_of(path: Path, kind: str) -> list[Path]:
    """The hidden files and folders of this kind beside `path`."""
    return sorted(path.parent.absolute().glob(f".{glob.escape(path.name)}.{kind}-*"))


def _has_writer(hidden: Path) -> bool:
    """Whether the process that a hidden name belongs to is running, or whether that can't be told."""
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
