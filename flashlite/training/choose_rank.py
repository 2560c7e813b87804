"""Which of several predictors each layer gets, where a model is to run in a given DRAM budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from flashlite.engine.budget import Candidate, choose_predictors, plan_budget
from flashlite.engine.predictor import LowRankPredictor
from flashlite.engine.predictor_file import LayerReport
from flashlite.engine.stages import POOL
from flashlite.storage.store import Store
from flashlite.training.distributed import ALONE, Group

Trained = tuple[LowRankPredictor, LayerReport]


def room_in(store: Store, budget: int | float | str) -> int:
    """Bytes of a DRAM budget that the stages with a pool have left for predictors and neurons.

    Raises BudgetError if the budget is too small even without predictors.
    """
    return plan_budget(store, POOL, budget, 0, [1.0] * store.layers).rows * store.shape.record_bytes


def choose_within(
    budget: int | float | str,
    mine: Sequence[Sequence[Trained]],
    store: Store,
    progress: Callable[[str], None] = lambda line: None,
    group: Group = ALONE,
) -> list[Trained]:
    """One of the predictors of each layer, so that a token reads as few neurons as possible in this budget.

    budget: see `parse_budget`
    mine: what this process has trained for each of its layers
    store: the packed model
    progress: is told of the choice
    group: of processes, which share the layers among each other

    Raises BudgetError as `room_in` does.
    """
    sizes = [[(predictor.nbytes, quality.window_rows) for predictor, quality in layer] for layer in mine]
    parts = [json.loads(part) for part in group.gather(json.dumps(sizes).encode())]
    layers = [
        [Candidate(nbytes, tuple(rows)) for nbytes, rows in parts[i % group.size][i // group.size]]
        for i in range(store.layers)
    ]
    room, record = room_in(store, budget), store.shape.record_bytes
    window, chosen = choose_predictors(layers, room, record)
    found = [layer[i] for layer, i in zip(layers, chosen, strict=True)]
    taken = sum(c.nbytes + c.window_rows[window - 1] * record for c in found)
    read = sum(c.window_rows[window] - c.window_rows[window - 1] for c in found) * record
    said = f"a token reads about {read / 1e6:.2f} MB" if taken <= room else "which is more than it has room for"
    if group.first:
        progress(f"chosen for a DRAM budget of {budget}: --window {window}, {said}")
    return [layer[i] for layer, i in zip(mine, chosen[group.rank :: group.size], strict=True)]
