"""Exercise 6.1: a DRAM budget split over the layers."""

from __future__ import annotations

import numpy as np
import pytest

from flashlite.course.checks import expect, require, rng
from flashlite.engine.budget import FEWEST_ROWS, split_rows

LAYERS = 16
SLACK = 2  # rows that rounding may cost a layer


def layers(count: int = 25) -> list[tuple[tuple[float, ...], int, int]]:
    """Needs, neurons and a total for which some layers are full and some have the fewest rows.

    Needs are in another unit each time, so that they are all far below 1, of any size, or all far above it.
    """
    random, cases = rng(), []
    for i in range(count):
        needs = np.exp(random.uniform(0, 7, LAYERS))  # the largest is about a thousand times the smallest
        needs[:4] = 1.0, 2.0, 60.0, 900.0
        neurons = int(random.integers(300, 1500))
        total = int(LAYERS * random.uniform(0.2, 0.8) * neurons)
        unit = (1.0, 1e-4, 1e4)[i % 3]
        cases.append((tuple((unit * random.permutation(needs)).tolist()), neurons, total))
    return cases


def split(total: int, needs: tuple[float, ...], neurons: int, spare: int) -> tuple[np.ndarray, str]:
    """What split_rows gives, if it is a whole number for each layer, and a description of the case."""
    rows = split_rows(total, needs, neurons, spare)
    what = f"{total} rows, {len(needs)} layers of {neurons} neurons, spare = {spare}"
    require(isinstance(rows, tuple), f"{what}: a {type(rows).__name__}", "a tuple of int")
    expect(len(rows), len(needs), f"{what}: number of layers")
    require(all(row == int(row) for row in rows), f"{what}: rows {rows[:4]}", "whole numbers")
    return np.array(rows, np.int64), what


@pytest.mark.points("6.1", 2)
def test_rows_stay_within_the_total_and_the_bounds() -> None:
    cases = [*layers(), ((5.0, 1.0, 3.0), 10, 400), ((5.0, 1.0, 3.0), 500, 3 * FEWEST_ROWS)]
    for needs, neurons, total in cases:
        rows, what = split(total, needs, neurons, 0)
        fewest = min(FEWEST_ROWS, neurons)
        text = f"No layer has below {fewest} rows, whatever its need."
        require(rows.min() >= fewest, f"{what}: a layer of {rows.min()} rows", f"{fewest} at least", text)
        text = "A layer can't use more rows than it has neurons."
        require(rows.max() <= neurons, f"{what}: a layer above its neurons, {rows.max()} rows", f"{neurons}", text)
        text = "What lifts small layers to the fewest rows must come from the others."
        shares = np.clip(total * np.array(needs) / sum(needs), fewest, neurons)  # in proportion once, then the bounds
        text = text if np.abs(rows - shares).max() <= 1 else ""
        require(rows.sum() <= total, f"{what}: {rows.sum()} rows handed out", f"{total}", text)


@pytest.mark.points("6.1", 2)
def test_rows_are_in_proportion_to_the_needs() -> None:
    for needs, neurons, total in layers():
        rows, what = split(total, needs, neurons, 0)
        need = np.array(needs)
        low, high = rows - SLACK, rows + SLACK
        lowest = np.where(low > FEWEST_ROWS, low / need, 0)  # scales that would give each layer its rows
        highest = np.where(high < neurons, high / need, np.inf)
        more, less = lowest.argmax(), highest.argmin()
        found = f"{what}: needs {need[more]:.4g} and {need[less]:.4g} got {rows[more]} and {rows[less]} rows"
        text = "Rows must be in proportion to the needs: one scale for all layers, then the bounds."
        require(lowest[more] <= highest[less], found, f"one scale, give or take {SLACK} rows", text)


@pytest.mark.points("6.1", 1)
def test_nothing_is_left_over_unless_every_layer_is_full() -> None:
    for needs, neurons, total in layers():
        check_nothing_is_left(total, needs, neurons, 0)
        rows, what = split(LAYERS * neurons + total, needs, neurons, 0)
        text = "More rows than neurons: every layer gets all of its neurons."
        require(rows.min() == neurons, f"{what}: a layer of {rows.min()} rows", f"{neurons}", text)


def check_nothing_is_left(total: int, needs: tuple[float, ...], neurons: int, spare: int) -> None:
    """Less than a row for each layer and copy may be left over, unless every layer is full."""
    rows, what = split(total, needs, neurons, spare)
    left = total - rows.sum() - spare * rows.max()
    scale = total / (sum(needs) + spare * max(needs))
    shares = np.clip(scale * np.array(needs), FEWEST_ROWS, neurons)  # in proportion once, then the bounds
    text = "Rows that a full layer leaves go to the others." if np.abs(rows - shares).max() <= 1 else ""
    most = len(needs) + spare
    require(left < most or rows.min() == neurons, f"{what}: {left} rows are left over", f"below {most}", text)


@pytest.mark.points("6.1", 1)
def test_copies_of_the_largest_layer_are_set_aside() -> None:
    for needs, neurons, total in layers():
        for spare in (1, 2):
            rows, what = split(total, needs, neurons, spare)
            used = rows.sum() + spare * rows.max()
            text = "Copies of the largest layer's rows must be set aside, out of the total."
            text = text if rows.sum() <= total else ""
            require(used <= total, f"{what}: layers and copies take {used} rows", f"{total}", text)
            check_nothing_is_left(total, needs, neurons, spare)
