"""Which store a name means: a store itself, or the packed form of a checkpoint, which is made if need be."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from flashlite.arguments import MANIFEST, is_store
from flashlite.errors import CheckpointError, StoreError, one_line
from flashlite.storage.checkpoint import Checkpoint
from flashlite.storage.hub import BUNDLED, Snapshot, find_snapshot, local_folder, model_name, say_which
from flashlite.storage.pack import own_dtype, pack_checkpoint
from flashlite.storage.safetensors_file import REPACK, STORED
from flashlite.storage.shelf import home, shelf
from flashlite.storage.side_files import CONFIG, side_files
from flashlite.storage.store import FORMAT, PACKED_BY, Store

log = logging.getLogger("flashlite")
WEIGHTS = {".safetensors", ".bin"}


def open_model(
    model: str | Path | Store, dtype: str | None = None, revision: str | None = None,
    check: Callable[[Path], object] = lambda checkpoint: None,
) -> Store:  # fmt: skip
    """The store that a model means: `model` itself if it is one, else its packed form under `home()`.

    model: a Store, the folder of a store or of a checkpoint, a bundled model's name, or the hub id of a checkpoint or
        of a store. A local folder comes first, so `opt-mini` is the model that comes with flashlite unless a folder of
        that name is at hand.
    dtype: fp32, bf16, fp16 or int8; None is the checkpoint's own, in which transformers would load it. A store has but
        one.
    revision: of a hub model, a branch, a tag or a commit; None is its main branch. Each commit is packed by itself.
    check: is given the folder of a checkpoint before it is packed, and raises FlashliteError if there is no use in that

    What isn't packed yet is packed first, with a line. Raises FlashliteError.
    """
    if isinstance(model, Store):
        return _as_asked(model, dtype, revision)
    if is_store(model):
        say_which(model)
        return _as_asked(Store(model), dtype, revision)
    if dtype is not None and dtype not in STORED:
        raise StoreError(f"unknown dtype {dtype!r}: choose from {list(STORED)}")
    if (folder := local_folder(model, revision)) is None:
        return _open_hub_model(str(model), dtype, revision, check)
    if not (folder / CONFIG).exists():
        raise StoreError(f"{model} is neither a store nor a checkpoint: it has no {MANIFEST} and no {CONFIG}")
    name = f"{model_name(model)}-format{FORMAT}-{_digest(folder)}"
    return _packed(name, dtype) or _pack(model, folder, name, dtype, check)


def find_store(store: str | Path, revision: str | None = None) -> Store:
    """A store that is packed already: its folder, or a hub id, which is downloaded if need be.

    revision: of a store on the hub, a branch, a tag or a commit; None is its main branch

    Raises StoreError if there is no such store or if it is damaged, and CheckpointError if the hub doesn't give it.
    """
    if os.path.isdir(store):
        return _as_asked(Store(store), None, revision)
    snapshot = find_snapshot(str(store), revision)
    if not snapshot.holds_store:
        raise StoreError(f"{store} is a checkpoint, not a store: make one with `flashlite pack {store} OUT`")
    return _of_the_hub(snapshot)


def _as_asked(store: Store, dtype: str | None, revision: str | None) -> Store:
    if by := store.manifest.get(PACKED_BY):
        log.warning("flashlite: %s was packed by %s in place of the engine's own code", store.path, by)
    if dtype is not None and dtype != store.dtype_name:
        raise StoreError(f"{store.path} was packed as {store.dtype_name}, not {dtype}: pack the checkpoint again")
    if revision is not None:
        raise StoreError(f"only hub models have revisions, and {store.path} is a store: leave out {revision!r}")
    return store


def _open_hub_model(model: str, dtype: str | None, revision: str | None, check: Callable[[Path], object]) -> Store:
    try:
        snapshot = find_snapshot(model, revision)
    except CheckpointError as error:
        if revision is not None or (store := _packed_before(model, dtype)) is None:
            raise
        log.warning("flashlite: %s as it was packed before, to %s: %s", model, store.path, error)
        return store
    if snapshot.holds_store:
        return _as_asked(_of_the_hub(snapshot), dtype, None)
    if (store := _packed(_hub_name(model, snapshot.commit), dtype)) is not None:
        return store
    folder = snapshot.folder()
    return _pack(model, folder, _hub_name(model, folder.name), dtype, check)  # the folder tells which commit it is


def _of_the_hub(snapshot: Snapshot) -> Store:
    """A store in the hub's cache, every byte of which is compared with its checksums when it is first opened, and again
    when a file was changed since. Raises StoreError if it is damaged."""
    folder = snapshot.folder()
    try:
        store = Store(folder)
        note = home() / "verified" / f"{_hub_name(snapshot.model, folder.name)}-{_digest(folder)}"
        if not note.exists():
            log.warning("flashlite: comparing %s with its checksums, once", snapshot.model)
            store.verify()
            with contextlib.suppress(OSError):  # where nothing can be noted, it is compared each time
                note.parent.mkdir(parents=True, exist_ok=True)
                note.touch()
    except StoreError as error:
        said, repack, _ = str(error).partition(REPACK)
        advice = f"; fetch it again with `hf download {snapshot.model} --force-download`" if repack else ""
        raise StoreError(f"{snapshot.model}, a store of the hub: {said}{advice}") from error.__cause__
    return store


def _hub_name(model: str, commit: str) -> str:
    return f"{_flat(model)}-{commit[:12]}-format{FORMAT}"


def _flat(model: str) -> str:
    return model.strip("/").replace("/", "--")


def _packed_before(model: str, dtype: str | None) -> Store | None:
    """The packed form of whichever commit of a hub model was packed or trained last."""
    begin, commit = glob.escape(_flat(model)), "[0-9a-f]" * 12
    paths = shelf().glob(f"{begin}-{commit}-format{FORMAT}-{dtype or '*'}")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        if (store := _packed(path.name.rpartition("-")[0], dtype)) is not None:
            return store
    return None


def _digest(checkpoint: Path) -> str:
    """Another one for another or a changed checkpoint. A bundled model's is the same wherever flashlite is."""
    with one_line(checkpoint, CheckpointError):
        weights = (path.name for path in checkpoint.iterdir() if path.suffix in WEIGHTS and path.is_file())
        files = [(name, checkpoint / name) for name in sorted({*side_files(checkpoint), *weights})]
        if checkpoint in BUNDLED.values():
            facts: list[object] = [(name, hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in files]
        else:
            sizes = ((name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in files)
            facts = [checkpoint.resolve(), *sizes]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _packed(name: str, dtype: str | None) -> Store | None:
    """A checkpoint's packed form in this dtype, or in the checkpoint's own if none is named; None if there is none."""
    for kind in [dtype] if dtype else STORED:
        if is_store(path := _place(name, kind)):
            store = _of_the_engine(Store(path))
            if dtype or store.manifest.get("own_dtype") == kind:
                return store
    return None


def _place(name: str, dtype: str) -> Path:
    return shelf() / f"{name}-{dtype}"


def _pack(model: str | Path, folder: Path, name: str, dtype: str | None, check: Callable[[Path], object]) -> Store:
    checkpoint = Checkpoint(folder)
    check(folder)
    kind = dtype or own_dtype(checkpoint)
    place = _place(name, kind)
    try:
        store = pack_checkpoint(checkpoint, model_name(model), place, kind)
    except StoreError as error:
        if is_store(place):
            return Store(place)  # another process packed it at the same time and was first
        if isinstance(error.__cause__, OSError):
            raise StoreError(f"{error}; set FLASHLITE_HOME to a folder where it can") from error.__cause__
        raise
    if dtype is None:
        why = f"because the checkpoint is in {checkpoint.published}".replace("torch.", "")
        log.warning("flashlite: %s was packed as %s, %s; dtype= or --dtype chooses another", model, kind, why)
    return store


def _of_the_engine(store: Store) -> Store:
    """The store itself. Raises StoreError if other code than the engine's own packed it."""
    if by := store.manifest.get(PACKED_BY):
        raise StoreError(f"{store.path} was packed by {by}, not by the engine's own code: remove it")
    return store


def check_apart(path: Path) -> None:
    """Raise StoreError where code in place of the engine's must not write: under `home()`, and in a store that the
    engine's own code packed, or over one."""
    place = path.absolute().resolve()
    if home().resolve() in (place, *place.parents):
        raise StoreError(f"{path} is among the models that the engine packed: choose a place outside of {home()}")
    for folder in (place, *place.parents):
        if is_store(folder) and PACKED_BY not in Store(folder).manifest:
            raise StoreError(f"{folder} is a store of the engine's own: choose another place for what exercises write")
