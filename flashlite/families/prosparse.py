"""ProSparse, `sparsellama`: Llama with FATReLU. It names code of its own, but only for the FFN, which streams here."""

from __future__ import annotations

from flashlite.families.llama import LLAMA

PROSPARSE = LLAMA
