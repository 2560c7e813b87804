# Solutions of exercises 6.1: flashlite.engine.budget as the engine runs it.
"""How a DRAM budget is spent: resident weights, predictors, read buffers, and the rest on neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flashlite.arguments import parse_budget
from flashlite.engine.resident import ResidentWeights
from flashlite.errors import BudgetError

if TYPE_CHECKING:
    from flashlite.engine.stages import Stage
    from flashlite.storage.store import Store

FEWEST_ROWS = 16  # of a layer's neurons, and of a read buffer
LARGEST_BUFFER = 2 * 2**20  # bytes; one pass of a stream
BUFFER_SHARE = 1 / 8  # of what is left for neurons


@dataclass(frozen=True)
class Budget:
    """A split of the DRAM budget, all in bytes but for rows.

    total: the budget; resident, predictors, buffers: what each part takes; stream_rows: rows of each of the two read
    buffers; layer_rows: most neurons of each layer that stay in DRAM.
    """

    total: int
    resident: int
    predictors: int
    buffers: int
    stream_rows: int
    layer_rows: tuple[int, ...]


def split_rows(total: int, needs: Sequence[float], neurons: int, spare: int) -> tuple[int, ...]:
    """Divide rows of DRAM over layers in proportion to their needs, no layer above `neurons` nor below FEWEST_ROWS.

    total: rows there are, at least FEWEST_ROWS for each layer and copy; needs: what each layer would like, in any unit;
    spare: copies of the largest layer's rows to set aside, out of the total as well. A layer of fewer neurons than
    FEWEST_ROWS gets them all. Returns each layer's rows: its need times one scale for all layers, cut to the bounds,
    give or take two rows. Rows that a full layer leaves go to the others: unless every layer is full, less is left over
    than one row for each layer and copy.
    """
    # 6.1  The paper measures each layer's rows and doesn't share a budget; this goes beyond it. For a given scale the
    # bounds are applied layer by layer, and the rows needed only grow with the scale; so the largest scale that fits is
    # found by bisection. Bounds, copies and rows left by full layers then need no cases of their own.
    # Usual mistakes: sharing in proportion once and cutting to the bounds afterwards, so that the total is passed or
    # rows are left over; forgetting the spare copies; rounding up past the total.
    fewest = min(FEWEST_ROWS, neurons)
    low, high = 0.0, total / max(min(needs), 1e-9)  # the scale at which the rows handed out reach the total
    rows = (fewest,) * len(needs)
    for _ in range(60):
        scale = (low + high) / 2
        tried = tuple(min(neurons, max(fewest, int(scale * need))) for need in needs)
        if sum(tried) + spare * max(tried) <= total:
            low, rows = scale, tried
        else:
            high = scale
    return rows


def plan_budget(store: Store, stage: Stage, budget: int | str, predictor_bytes: int, needs: Sequence[float]) -> Budget:
    """Spend a budget. needs: rows that each layer's window would like.

    Raises BudgetError, naming the smallest budget that works, if it is too small.
    """
    total = parse_budget(budget, store.weight_bytes)
    resident = ResidentWeights.bytes_needed(store, stage.resident)
    record, neurons = store.shape.record_bytes, store.shape.neurons
    fewest = min(FEWEST_ROWS, neurons)
    least_rows = 2 * fewest + (fewest * (store.layers + stage.memory.spare) if stage.predictor else 0)
    smallest = resident + predictor_bytes + least_rows * record
    if total < smallest:
        percent = f"{1000 * smallest // store.weight_bytes / 10 + 0.1:.1f}%"  # the next tenth, so that writing it works
        raise BudgetError(
            f"a budget of {total} bytes is too small: the smallest that works is {smallest} bytes, {resident} of them "
            f'for resident weights: write --dram-budget {percent}, in Python dram_budget="{percent}"',
            smallest,
        )
    left = (total - resident - predictor_bytes) // record
    largest = min(neurons, max(1, LARGEST_BUFFER // record))
    share = BUFFER_SHARE if stage.predictor else 1.0
    most = (left - fewest * (store.layers + stage.memory.spare)) // 2 if stage.predictor else left // 2
    stream_rows = max(fewest, min(largest, int(left * share) // 2, most))
    rows = split_rows(left - 2 * stream_rows, needs, neurons, stage.memory.spare) if stage.predictor else ()
    return Budget(total, resident, predictor_bytes, 2 * stream_rows * record, stream_rows, rows)
