"""Exercise 10.2: a sum of rows that are int8."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flashlite.course.checks import Call, expect, expect_each, require, rng
from flashlite.engine.int8 import product
from flashlite.engine.int8.product import row_sum
from flashlite.engine.kernels.rows import FEW, weighted_sum
from flashlite.storage.int8.rounding import block_rows

WIDTH, PADDING = 24, 8
EVERY = slice(None)
Array = np.ndarray


def matrix_of(rows: int, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Rows of int8 as they lie among other bytes, and a scale for each."""
    random = rng()
    held = torch.from_numpy(random.integers(-127, 128, (rows, width + PADDING)).astype(np.int8))
    return held[:, PADDING:], torch.from_numpy(random.uniform(0.001, 0.05, rows)).float()


def values_of(tokens: int, n: int, share: float = 0.3) -> Tensor:
    """Values of neurons, some of which fire for some tokens, and the first one for the last token alone. [tokens, n]"""
    random = rng()
    h = random.uniform(0.2, 2, (tokens, n)) * random.choice([-1, 1], (tokens, n))
    h *= random.random((tokens, n)) < share
    h[:, 0], h[:, n // 2] = 0, 0
    h[-1, 0] = -1.5
    return torch.from_numpy(h).float()


def right(h: Array, rows: Array, scale: Array, numbers: Array) -> Array:
    return (h * scale[numbers]) @ rows[numbers]


def mistakes(h: Array, rows: Array, scale: Array, numbers: Array) -> dict[str, Array]:
    """What usual mistakes give; those that look alike in a call are not told apart by it."""
    n, fired = len(numbers), np.flatnonzero(h.any(0))
    found = {
        "The scale is missing.": h @ rows[numbers],
        "A value belongs to a picked row: look up the rows by picked.": (h * scale[numbers]) @ rows[:n],
        "A value belongs to a picked row: look up the scales by picked as well.": (h * scale[:n]) @ rows[numbers],
        "A neuron's place in h is not the number of its row.": (h * scale[:n]) @ rows[:n],
        "A neuron's place in h is not the number of its row. ": h[:, fired] * scale[fired] @ rows[fired],
        "A value below 0 counts as well: only 0 means that a neuron doesn't fire.": right(
            np.maximum(h, 0), rows, scale, numbers
        ),
        "A value below 0 counts as well: only 0 means that a neuron doesn't fire. ": right(
            h * (h > 0).any(0), rows, scale, numbers
        ),
        "A neuron fires if it does for any of the tokens.": right(h * (h[:1] != 0), rows, scale, numbers),
        "Multiply by the scale.": (h / scale[numbers]) @ rows[numbers],
    }
    if rows.shape[1] == n:
        found["Each row has its own scale, so it comes before the sum."] = h @ rows[numbers] * scale[numbers]
    return found


def call(h: Tensor, rows: Tensor, scale: Tensor, picked: Any, what: str) -> Call:
    numbers = np.arange(len(rows))[picked]
    plain = h.double().numpy(), rows.double().numpy(), scale.double().numpy(), numbers
    expected = right(*plain)
    wrong = mistakes(*plain)
    run = partial(row_sum, h, rows, scale) if picked is EVERY else partial(row_sum, h, rows, scale, picked)
    return Call(run, expected, what, wrong, 1e-4 * float(np.abs(expected).max()))


@pytest.mark.points("10.2", 2)
def test_the_sum_of_picked_rows_for_few_tokens_and_for_many() -> None:
    calls = []
    for tokens in (1, 3, FEW, FEW + 3):
        for place, picked in {
            "rows 7 to 30": slice(7, 31), "scattered rows": rng().permutation(40)[:WIDTH], "every row": EVERY,
        }.items():  # fmt: skip
            rows, scale = matrix_of(40)
            h = values_of(tokens, len(np.arange(40)[picked]))
            calls.append(call(h, rows, scale, picked, f"the sum of {place} for {tokens} tokens"))
    expect_each(calls)


class Watch(TorchDispatchMode):
    """Counts the weights of int8 that torch makes float: all of them, and the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for each operation."""
        result = function(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        for tensor in given if made else ():
            if tensor.dtype == torch.int8:
                self.all, self.most = self.all + tensor.numel(), max(self.most, tensor.numel())
        return result


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of weighted_sum was given."""
    counts: list[int] = []

    def counting(h: Tensor, matrix: Tensor, rows: Array, width: int) -> Tensor:
        counts.append(len(rows))
        return weighted_sum(h, matrix, rows, width)

    monkeypatch.setattr(product, "weighted_sum", counting, raising=False)
    return counts


@pytest.mark.points("10.2", 1)
def test_few_tokens_leave_the_rows_int8_and_read_those_that_fire(summed: list[int]) -> None:
    for tokens in (1, FEW):
        rows, scale = matrix_of(60)
        h = values_of(tokens, 60, share=0.1)
        fires = int(h.any(0).sum())
        summed.clear()
        with Watch() as watch:
            row_sum(h, rows, scale, EVERY)
        what = f"with {tokens} tokens"
        text = "For few tokens no row becomes float32: weighted_sum takes rows of int8."
        require(watch.all == 0, f"{watch.all} weights became float32 {what}", "0", text)
        text = "Rows of neurons that don't fire were read."
        require(sum(summed) <= fires, f"{sum(summed)} rows were read {what}", f"{fires}", text)


@pytest.mark.points("10.2", 1)
def test_many_tokens_make_one_part_float32_at_a_time(summed: list[int]) -> None:
    width, tokens = 1024, FEW + 1
    most = block_rows(width)
    rows, scale = matrix_of(3 * most, width)
    h = values_of(tokens, len(rows), share=0.15)
    fires = int(h.any(0).sum())
    assert most < fires < len(rows)
    asked = call(h, rows, scale, EVERY, f"the sum of {len(rows)} rows for {tokens} tokens")
    expect_each([asked])
    with Watch() as watch:
        asked.run()
    require(
        not summed, f"weighted_sum was called for {tokens} tokens", f"for at most {FEW}",
        "More than FEW tokens take torch's product.",
    )  # fmt: skip
    text = "All rows became float32 at once: take them in parts."
    require(watch.most <= most * width, f"{watch.most} weights in float32 at a time", f"{most * width}", text)
    text = "Rows of neurons that don't fire became float32."
    require(watch.all <= fires * width, f"{watch.all} weights became float32", f"{fires * width}", text)


@pytest.mark.points("10.2", 1)
def test_nothing_picked_nothing_fired_and_nothing_changed() -> None:
    rows, scale = matrix_of(20)
    for tokens in (1, FEW + 1):
        for what, n, h in (("no rows", 0, torch.zeros(tokens, 0)), ("rows that don't fire", 5, torch.zeros(tokens, 5))):
            expect(row_sum(h, rows, scale, slice(n)), np.zeros((tokens, WIDTH)), f"the sum of {what}")
        h, picked = values_of(tokens, 9), rng().permutation(20)[:9]
        given = h, rows, scale, torch.from_numpy(picked)
        before = [tensor.clone() for tensor in given]
        found = row_sum(h, rows, scale, picked)
        require(found.dtype == torch.float32, f"the sum is {found.dtype}", "torch.float32")
        for name, tensor, was in zip(("h", "rows", "scale", "picked"), given, before, strict=True):
            require(torch.equal(tensor, was), f"{name} was changed", "no change", f"Leave the caller's {name} alone.")
