# Solutions of exercises 6.1, 6.2: flashlite.engine.budget as the engine runs it.
"""How a DRAM budget is spent: resident weights, predictors, read buffers, and the rest on neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flashlite.arguments import parse_budget
from flashlite.engine.int8.neurons import bias_bytes
from flashlite.engine.predictor_file import PredictorSet
from flashlite.engine.resident import ResidentWeights
from flashlite.engine.window import largest_window
from flashlite.errors import BudgetError

if TYPE_CHECKING:
    from flashlite.engine.stages import Stage
    from flashlite.storage.store import Store

FEWEST_ROWS = 16  # the fewest neurons of a layer in DRAM, and the fewest rows of a read buffer
LARGEST_BUFFER = 2 * 2**20  # bytes of each of the two read buffers
BUFFER_SHARE = 1 / 8  # of the DRAM that is left for neurons, for both read buffers


@dataclass(frozen=True)
class Budget:
    """A split of the DRAM budget, in bytes where it doesn't say rows.

    total: the budget
    resident, predictors, buffers: what each part takes
    stream_rows: rows of each of the two read buffers
    layer_rows: most neurons of each layer that stay in DRAM
    rows: what is left for neurons, the layers' own rows and the stage's spare copies
    host: with a device, whose memory all the others are, what buffers take of the host's memory
    """

    total: int
    resident: int
    predictors: int
    buffers: int
    stream_rows: int
    layer_rows: tuple[int, ...]
    rows: int
    host: int = 0


@dataclass(frozen=True)
class Candidate:
    """A predictor that a layer could have.

    nbytes: the DRAM that it takes
    window_rows: window_rows[k - 1] is s_agg(k), the mean size of the union of k tokens' predicted sets, in neurons
    """

    nbytes: int
    window_rows: tuple[float, ...]


def choose_predictors(layers: Sequence[Sequence[Candidate]], room: int, record: int) -> tuple[int, tuple[int, ...]]:
    """Divide DRAM between better predictors and a longer window so that a token reads as little as possible.

    layers: the predictors that each layer could have, one or more; all window_rows are equally long, at least 2
    room: bytes of DRAM for the predictors of all layers and their neurons
    record: bytes of a neuron

    Returns the window k in tokens, below the length of window_rows, and the place of each layer's predictor among its
    candidates. In a layer a window of k takes s_agg(k) rows, and a token reads s_agg(k + 1) - s_agg(k) neurons. If no
    choice has room, the window is 1 and each predictor is the one that takes least DRAM with it.
    """
    # 6.2  For a given window, each layer offers a few pairs of DRAM and reads, and one of each must be taken: a
    # knapsack with a choice in each layer. Go through the layers and keep the ways to choose so far. Of two ways, one
    # that takes more and reads no less can't be part of a better whole, because what follows costs both the same; so
    # few of the billions of ways remain, and the result is exact. There are other ways: a grid of a few thousand cells
    # of DRAM, or all ways for one half of the layers, each with the best for the other half that still fits. The price
    # alone separates the layers, as the one scale does in exercise 6.1, and comes within a fraction of a percent where
    # many small steps fill the room; where a few large ones do, it leaves much of it empty.
    # Usual mistakes: choosing the predictors first and the window afterwards; choosing each layer by itself at the
    # window that would be best for it alone; forgetting that predictors take DRAM, too; reads as s_agg(k) - s_agg(k -
    # 1), which are those of a shorter window; filling the room layer after layer, so that the last layers get what is
    # left; always paying for the change that saves most for a byte, which may leave no room for two others that save
    # more together.
    least, choice = np.inf, (1, tuple(_smallest(layer, record) for layer in layers))
    for k in range(1, len(layers[0][0].window_rows)):
        taken, read, chosen = np.zeros(1), np.zeros(1), np.zeros((1, 0), np.int64)  # ways that are worth to go on from
        for layer in layers:
            costs = np.array([c.nbytes + c.window_rows[k - 1] * record for c in layer])
            new = np.array([c.window_rows[k] - c.window_rows[k - 1] for c in layer])
            taken, read = (taken[:, None] + costs).ravel(), (read[:, None] + new).ravel()
            order = np.lexsort((read, taken))
            order = order[taken[order] <= room]
            before = np.minimum.accumulate(np.append(np.inf, read[order]))[:-1]
            order = order[read[order] < before]  # of ways that take more and read no less, nothing is gained
            way, last = np.divmod(order, len(layer))
            taken, read, chosen = taken[order], read[order], np.column_stack([chosen[way], last])
        if len(read) and read[-1] < least:
            least, choice = read[-1], (k, tuple(chosen[-1].tolist()))
    return choice


def _smallest(layer: Sequence[Candidate], record: int) -> int:
    """The place of the predictor that takes least DRAM with a window of one token."""
    costs = [candidate.nbytes + candidate.window_rows[0] * record for candidate in layer]
    return costs.index(min(costs))


def split_rows(total: int, needs: Sequence[float], neurons: int, spare: int) -> tuple[int, ...]:
    """Divide the rows of DRAM over the layers in proportion to their needs.

    total: how many rows there are, at least FEWEST_ROWS for each layer and each spare copy
    needs: how much each layer would like to have, in any unit
    neurons: how many neurons each layer has; a layer gets at most a row for each
    spare: how many copies of the largest layer's rows must be set aside, out of the total as well

    Returns each layer's rows: its need times a scale that is the same for all layers, give or take two rows, but never
    below FEWEST_ROWS and never above `neurons`. A layer with fewer neurons than FEWEST_ROWS gets a row for each. Rows
    that a full layer leaves go to the others. Unless every layer is full, fewer rows are left over than there are
    layers and copies.
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


def plan_budget(
    store: Store,
    stage: Stage,
    budget: int | float | str,
    predictor_bytes: int,
    needs: Sequence[float],
    advice: str = "",
) -> Budget:
    """Decide how a DRAM budget is spent.

    store: the packed model
    stage: says which parts need DRAM
    budget: see `parse_budget`
    predictor_bytes: the size of all predictors together
    needs: how many rows each layer's window would like to have
    advice: another way out than a larger budget

    Raises BudgetError if the budget is too small; the text names the smallest that works.
    """
    total = parse_budget(budget, store.weight_bytes)
    resident = ResidentWeights.bytes_needed(store, stage.resident)
    if store.quantized and stage.predictor:
        resident += store.layers * store.shape.neurons * bias_bytes(store.shape)
    record, neurons = store.shape.record_bytes, store.shape.neurons
    fewest = min(FEWEST_ROWS, neurons)
    least_rows = 2 * fewest + (fewest * (store.layers + stage.memory.spare) if stage.predictor else 0)
    smallest = resident + predictor_bytes + least_rows * record
    if total < smallest:
        percent = f"{1000 * smallest // store.weight_bytes / 10 + 0.1:.1f}%"  # the next tenth, so that writing it works
        raise BudgetError(
            f"a budget of {total} bytes is too small: the smallest that works is {smallest} bytes, {resident} of them "
            f'for resident weights: write --dram-budget {percent}, in Python dram_budget="{percent}"{advice}',
            smallest,
        )
    left = (total - resident - predictor_bytes) // record
    largest = min(neurons, max(1, LARGEST_BUFFER // record))
    share = BUFFER_SHARE if stage.predictor else 1.0
    most = (left - fewest * (store.layers + stage.memory.spare)) // 2 if stage.predictor else left // 2
    stream_rows = max(fewest, min(largest, int(left * share) // 2, most))
    rows = left - 2 * stream_rows if stage.predictor else 0
    layer_rows = split_rows(rows, needs, neurons, stage.memory.spare) if stage.predictor else ()
    return Budget(total, resident, predictor_bytes, 2 * stream_rows * record, stream_rows, layer_rows, rows)


def longest_window(store: Store, stage: Stage, budget: int | float | str, int8_bytes: int = 1) -> int:
    """The most tokens whose neurons fit a budget on average, but at least 1: what window="auto" means.

    store, stage, budget: see `plan_budget`
    int8_bytes: what an int8 weight of a predictor takes where the model runs

    The window's size is judged by s_agg(k) on held-out text, from the reports of the trained predictors. So it is at
    most as long as the longest that they report. Raises PredictorError if the store has no predictor, and BudgetError
    as `plan_budget` does.
    """
    trained = PredictorSet.load(store)
    nbytes = sum(layer.nbytes + (int8_bytes - 1) * layer.int8_weights for layer in trained.layers)
    fewest = min(FEWEST_ROWS, store.shape.neurons)
    plan = plan_budget(store, stage, budget, nbytes, [1.0] * store.layers)
    by_window = zip(*(report.window_rows for report in trained.reports), strict=False)
    needs = [[max(fewest, rows) for rows in layers] for layers in by_window]
    return max(1, largest_window([sum(need) + stage.memory.spare * max(need) for need in needs], plan.rows))
