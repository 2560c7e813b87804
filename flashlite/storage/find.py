"""Which store a name means: a store itself, or the packed form of a checkpoint, which is made if need be."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from flashlite.arguments import MANIFEST, is_store
from flashlite.errors import FlashliteError, StoreError
from flashlite.storage.checkpoint import find_checkpoint
from flashlite.storage.pack import pack
from flashlite.storage.store import FORMAT, Store


def home() -> Path:
    """Where packed models are kept: $FLASHLITE_HOME, or flashlite in the user's cache folder. Raises FlashliteError if
    the user has none."""
    if folder := os.environ.get("FLASHLITE_HOME"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flashlite"
    except RuntimeError:
        raise FlashliteError("this user has no home folder: set FLASHLITE_HOME to a folder for packed models") from None


def open_model(model: str | Path | Store, dtype: str | None = None) -> Store:
    """A store: `model` itself if it is one, else its packed form under `home()`, which is written if need be."""
    if isinstance(model, Store) or is_store(model):
        store = model if isinstance(model, Store) else Store(model)
        if dtype is not None and dtype != store.dtype_name:
            raise StoreError(f"{store.path} was packed as {store.dtype_name}, not {dtype}: pack the checkpoint again")
        return store
    if os.path.isdir(model) and not os.path.exists(Path(model) / "config.json"):
        raise StoreError(f"{model} is neither a store nor a checkpoint: it has no {MANIFEST} and no config.json")
    packed = home() / "stores" / f"{_packed_name(model)}-{dtype or 'fp32'}"
    if is_store(packed):
        return Store(packed)
    try:
        return pack(model, packed, dtype or "fp32")
    except StoreError as error:
        if is_store(packed):
            return Store(packed)  # another process packed it at the same time and was first
        if isinstance(error.__cause__, OSError):
            raise StoreError(f"{error}; set FLASHLITE_HOME to a folder where it can") from error.__cause__
        raise


def _packed_name(model: str | Path) -> str:
    """What a checkpoint's packed form is called: another name for another or a changed checkpoint."""
    if str(model) != "opt-mini" and not os.path.isdir(model):
        return f"{str(model).strip('/').replace('/', '--')}-format{FORMAT}"
    checkpoint = find_checkpoint(model).resolve()
    files = [path for path in sorted(checkpoint.iterdir()) if path.suffix in {".json", ".safetensors", ".bin"}]
    if str(model) == "opt-mini":  # the same model in whichever place flashlite is installed
        facts: list[object] = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    else:
        facts = [checkpoint, *((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)]
    return f"{Path(model).name}-format{FORMAT}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"
