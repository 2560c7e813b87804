"""flashlite: run a language model larger than memory by streaming its weights from flash.

import flashlite
model = flashlite.load("opt-mini", dram_budget="50%")
model.generate(...)
"""

from flashlite.errors import FlashliteError
from flashlite.model import load
from flashlite.store import Store, pack
from flashlite.version import __version__

__all__ = ["FlashliteError", "Store", "__version__", "load", "pack"]
