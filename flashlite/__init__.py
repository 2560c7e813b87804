"""flashlite: run a language model larger than memory by streaming its weights from flash.

import flashlite
model = flashlite.load("opt-mini", dram_budget="50%")
model.generate(...)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashlite.engine.model import load
    from flashlite.errors import FlashliteError
    from flashlite.storage.pack import pack
    from flashlite.storage.store import Store
    from flashlite.version import __version__

__all__ = ["FlashliteError", "Store", "__version__", "load", "pack"]

_HOMES = {
    "FlashliteError": "errors", "Store": "storage.store", "__version__": "version", "load": "engine.model",
    "pack": "storage.pack",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a part when it is first used, so that the command line answers before torch is loaded."""
    if name not in _HOMES:
        raise AttributeError(f"module 'flashlite' has no attribute {name!r}")
    return getattr(import_module(f"flashlite.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The names that are imported when they are used are told like all others."""
    return sorted({*globals(), *__all__})
