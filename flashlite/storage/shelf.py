"""What is in the cache: packed models, and what packs have left half written. No weights are read, so no torch.

A folder in `shelf()` is a packed model; a hidden one is being written, or was left by a process that died (atomic.py).
Models of formats that this version can't open are listed all the same, because they take room.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashlite.arguments import MANIFEST, is_store
from flashlite.errors import FlashliteError, StoreError, one_line
from flashlite.storage import atomic
from flashlite.storage.strict_json import read_object

PREDICTOR = "predictor.safetensors"  # as storage/store.py calls it, which needs torch
BLOCK = 512  # bytes that st_blocks counts by


def home() -> Path:
    """The folder of packed models: $FLASHLITE_HOME, or flashlite in the user's cache folder.

    Raises FlashliteError if the user has no home folder.
    """
    try:
        if folder := os.environ.get("FLASHLITE_HOME"):
            return Path(folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "flashlite"
    except RuntimeError:
        raise FlashliteError("this user has no home folder: set FLASHLITE_HOME to a folder for packed models") from None


def shelf() -> Path:
    """The folder in which each packed model has a folder of its own."""
    return home() / "stores"


@dataclass(frozen=True)
class Entry:
    """Something in the cache.

    path: where it is
    dtype: of its weights; empty where no manifest says it
    nbytes: on the drive
    made: when its manifest was written, which is written last, in seconds since 1970; its own time if it has none
    predictor: whether a predictor was trained for it
    notes: what else there is to say of it
    """

    path: Path
    dtype: str
    nbytes: int
    made: float
    predictor: bool
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it is called in the cache."""
        return self.path.name


def entries() -> list[Entry]:
    """All that is in the cache, in order of names. Raises StoreError if it can't be read."""
    folder = shelf()
    with one_line(folder, StoreError):
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # its writer has just given it its name, or removed it
            found.append(_entry(path))
    return found


def find(name: str) -> Entry:
    """The entry of this name. Raises StoreError if there is none."""
    for entry in entries():
        if entry.name == name:
            return entry
    raise StoreError(f"there is nothing called {name!r:.80} in {shelf()}: `flashlite stores` lists what there is")


def check_removable(entry: Entry) -> None:
    """Raise StoreError if a process is writing this entry, or into it."""
    if (writer := _writer(entry.path)) is not None:
        raise StoreError(f"{entry.name} is being written by process {writer}: wait for it, or end it first")


def remove(entry: Entry) -> None:
    """Remove an entry. Of a link the link alone is removed, and no link in a folder is followed.

    Raises StoreError if a process is writing it, or if it can't be removed.
    """
    check_removable(entry)
    atomic.remove(entry.path)


def _entry(path: Path) -> Entry:
    made, notes, manifest = path.lstat().st_mtime, [], {}
    hidden, writer = atomic.is_hidden(path), _writer(path)
    if path.is_symlink():
        notes.append("a link, which isn't followed")
    elif hidden or writer is not None:
        notes.append("left by a pack that was broken off" if writer is None else f"being written by process {writer}")
    if not path.is_symlink() and not hidden:
        manifest = _manifest(path)
        notes += _said(path, manifest)
        with contextlib.suppress(OSError):
            made = (path / MANIFEST).stat().st_mtime
    dtype = str(manifest.get("dtype", ""))
    return Entry(path, dtype, _size(path), made, bool(manifest) and (path / PREDICTOR).is_file(), tuple(notes))


def _manifest(path: Path) -> dict[str, Any]:
    """What a store says of itself; nothing if it can't be understood."""
    try:
        return read_object(path / MANIFEST)
    except (OSError, ValueError):
        return {}


def _said(path: Path, manifest: dict[str, Any]) -> list[str]:
    """What is worth a note of a store's manifest."""
    if not is_store(path):
        return ["not a store"]
    if not manifest:
        return ["its manifest is damaged"]
    by = manifest.get("packed_by")
    return [*(["planted"] if "planted" in manifest else []), *([f"packed by {by}"] if by else [])]


def _writer(path: Path) -> int | None:
    """The process that writes an entry or, as a training does, a file in it; None if there is none."""
    beside = atomic.writer(path)
    if beside is not None or path.is_symlink() or not path.is_dir():
        return beside
    inside = (atomic.writer(file) for file in path.iterdir() if atomic.is_hidden(file))
    return next((process for process in inside if process is not None), None)


def _size(path: Path) -> int:
    """Bytes that a file or a folder takes on the drive, without what links in it lead to."""
    total = 0
    for place in (path, *(() if path.is_symlink() else path.rglob("*"))):
        with contextlib.suppress(FileNotFoundError):
            found = place.lstat()
            if stat.S_ISREG(found.st_mode):
                total += found.st_blocks * BLOCK if hasattr(found, "st_blocks") else found.st_size
    return total
