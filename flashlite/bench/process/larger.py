"""A model that is larger than this machine's memory: in a benchmark, naive loading takes the dense model's place.

No machine of this size can run its dense model. But a naive stage multiplies every weight for every token, too, and
needs room for one layer's part alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from flashlite.bench.decoding import WARM_UP, greedy
from flashlite.bench.machine import host
from flashlite.bench.process.memory import memory_status
from flashlite.bench.process.task import LOGITS, DenseTask
from flashlite.bench.row import DenseCost
from flashlite.engine.model import build
from flashlite.engine.stages import NAIVE
from flashlite.storage.store import Store

SPARE = 2**30  # bytes that the system and a process need beside the weights


def fits(store: Store, copies: int = 1) -> bool:
    """Whether the dense model fits this machine's memory. copies: how many times the bytes of a store's weights."""
    return copies * store.weight_bytes + SPARE <= host().memory_bytes


def measure_naive(task: DenseTask, store: Store) -> DenseCost:
    """Naive loading: its tokens and logits, for the stages to be compared with, and its time.

    It reads whichever layout the store has, and writes its text once: each token takes as long as the drive needs for
    all weights.
    """
    setup, before = task.setup, memory_status("VmRSS")
    stage = replace(NAIVE, layout=store.layouts[0])
    model = build(store, stage, "100%", "oracle")
    tokens, logits = greedy(model, setup.prompt, setup.tokens)
    save_file({"logits": logits.contiguous(), "tokens": torch.tensor(tokens)}, Path(setup.folder) / LOGITS)
    prompt, *decoded = model.flash.calls
    times = [call.total_ms for call in decoded[WARM_UP:]]
    rest = [call.total_ms - call.io_ms - call.memory_ms - call.product_ms for call in decoded[WARM_UP:]]
    lower, median, upper = (float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
    return DenseCost(
        total_ms=median, prompt_ms=prompt.total_ms, rest_ms=float(np.median(rest)), streamed=True,
        dram_bytes=memory_status("VmRSS") - before, base_rss_bytes=before, scatter=(upper - lower) / median,
    )  # fmt: skip
