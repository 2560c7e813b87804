"""What people use today when a model doesn't fit: set up as its own documentation says, on the same weights.

All weights take part in every token of a peer. `flashlite bench --peers` measures each that suits the store, with the
weights as a checkpoint beside it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashlite.bench.decoding import Decoding, forced
from flashlite.bench.peers import ctranslate
from flashlite.bench.peers.offload import ffn_on_disk, in_dram, layers_on_disk, mapped
from flashlite.bench.process.larger import fits
from flashlite.errors import FlashliteError
from flashlite.storage.store import Store

ACCELERATE = "accelerate"


@dataclass(frozen=True)
class Peer:
    """Something that people use today.

    load: gives the model, from a store, its checkpoint's folder and a device
    package: what must be installed for it beside flashlite's own packages
    capped: whether it runs under the stages' memory cap; what has all of its weights in DRAM takes turns with them
    int8_alone: whether it is beside stores in int8 only; such a peer, or what prepares it, takes all weights in bf16
    opt_alone: whether it runs OPT only
    cpu_alone: whether there is no such way to a device
    prepare: makes of the checkpoint's folder what it reads, before anything is measured
    decode: has the model decode, from a prompt, and tokens that the dense model wrote
    """

    load: Callable[[Store, Path, torch.device], Any]
    package: str | None = None
    capped: bool = True
    int8_alone: bool = False
    opt_alone: bool = False
    cpu_alone: bool = False
    prepare: Callable[[Path], None] = lambda checkpoint: None
    decode: Callable[[Any, list[int], list[int]], Decoding] = forced

    def suits(self, store: Store, device: str) -> bool:
        """Whether it runs this store's model on this device."""
        return (
            (store.quantized or not self.int8_alone)
            and (store.config.model_type == "opt" or not self.opt_alone)
            and (device == "cpu" or not self.cpu_alone)
        )


def _ctranslate(capped: bool) -> Peer:
    return Peer(
        ctranslate.load, ctranslate.PACKAGE, capped, int8_alone=True, opt_alone=True, cpu_alone=True,
        prepare=ctranslate.convert, decode=ctranslate.decode,
    )  # fmt: skip


PEERS = {
    "transformers bf16, no cap": Peer(in_dram, capped=False, int8_alone=True),
    "CTranslate2 int8, no cap": _ctranslate(capped=False),
    "CTranslate2 int8": _ctranslate(capped=True),
    "accelerate, FFN on disk": Peer(ffn_on_disk, ACCELERATE),
    "accelerate, layers on disk": Peer(layers_on_disk, ACCELERATE),
    "memory-mapped safetensors": Peer(mapped, cpu_alone=True),
}


def peers_of(store: Store, device: str) -> list[str]:
    """The names of the peers of a store whose model runs on this device: all that suit it and are installed.

    Raises FlashliteError where accelerate, which suits every store, is missing.
    """
    if not _installed(ACCELERATE):
        raise FlashliteError("--peers measures accelerate, which is not installed: pip install accelerate")
    large = too_large(store, device)
    return [
        name
        for name, peer in PEERS.items()
        if peer.suits(store, device) and _installed(peer.package) and name not in large
    ]


def missing_of(store: Store, device: str) -> list[str]:
    """Packages that peers of such a store need, and that aren't installed."""
    wanted = {peer.package for peer in PEERS.values() if peer.suits(store, device)}
    return sorted(package for package in wanted if package and not _installed(package))


def too_large(store: Store, device: str) -> list[str]:
    """The names of the peers of such a store that need more memory than this machine has: nothing limits them, so that
    they would take the memory of everything else on it."""
    if fits(store, copies=2):
        return []
    return [name for name, peer in PEERS.items() if peer.int8_alone and peer.suits(store, device)]


def _installed(package: str | None) -> bool:
    return package is None or importlib.util.find_spec(package) is not None
