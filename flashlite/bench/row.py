"""What an engine's calls cost, as the benchmark's rows tell it: means over tokens, and the processor's own speeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flashlite.bench.cost import copy_speed, product_speed
from flashlite.engine.model import Engine
from flashlite.engine.timing import CallCost
from flashlite.storage.store import Store

WARM_UP = 4  # first tokens, left out of the medians


def per_token(engine: Engine) -> dict[str, Any]:
    """What an engine that decoded needed for a token: times of the middle half of tokens, so that they add up; counts
    of all."""
    calls = [call for call in engine.calls if call.tokens == 1][WARM_UP:]
    ordered, quarter = sorted(calls, key=lambda call: call.total_ms), len(calls) // 4
    middle = ordered[quarter : len(calls) - quarter]

    def mean(field: str, of: list[CallCost] = calls) -> float:
        return float(np.mean([getattr(call, field) for call in of]))

    times = {field: mean(field, middle) for field in ("io_ms", "memory_ms", "compute_ms", "product_ms", "total_ms")}
    nbytes, io = mean("bytes"), times["io_ms"]
    return {
        "tokens": len(calls), **times, "prefetched_bytes": mean("prefetched"), "wasted_bytes": mean("wasted"),
        "bytes_per_token": nbytes, "reads_per_token": mean("reads"),
        "records_per_token": mean("records"), "read_mb_s": nbytes / io / 1e3 if io else 0.0,
        "dram_bytes": _dram(engine), "rows_moved": engine.rows_moved / len(engine.calls),
        "batches_per_token": _batches(engine),
    }  # fmt: skip


def _batches(engine: Engine) -> int:
    """How often a token waits for reads: once a layer, or, streamed, once a pass."""
    layers, stage = engine.store.layers, engine.stage
    passes = 1 if stage.predictor else -(-engine.store.shape.neurons // engine.stream.rows)
    return layers * passes + (0 if stage.resident else layers + 1)


def _dram(engine: Engine) -> int:
    """DRAM that the budget accounts for, as it was spent."""
    budget, record = engine.budget, engine.store.shape.record_bytes
    rows = sum(budget.layer_rows) + engine.stage.memory.spare * max(budget.layer_rows, default=0)
    return budget.resident + budget.predictors + budget.buffers + rows * record


@dataclass(frozen=True)
class Rows:
    """Rows of an FFN that are multiplied: at_a_time, and the sum over a token."""

    at_a_time: int
    a_token: int

    @classmethod
    def of(cls, engine: Engine) -> Rows:
        """Those of an engine that decoded."""
        if not engine.stage.predictor:
            return cls(engine.stream.rows, engine.store.layers * engine.store.shape.neurons)
        return cls(max(1, int(np.mean(engine.rows_held))), sum(engine.rows_held))


def speeds(store: Store, rows: Rows, fires: float | None) -> dict[str, float]:
    """This processor's speed at what a stage does for a token. fires: see `product_speed`."""
    shape = store.shape
    return {
        "product_bytes_a_second": product_speed(shape, store.layers, store.dtype, rows.at_a_time, fires),
        "copy_bytes_a_second": copy_speed(rows.at_a_time * shape.record_bytes),
        "product_bytes": float(rows.a_token * 2 * shape.half_bytes),
    }
