"""Exercise 10.1: a matrix in int8, with a scale for each row."""

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
from flashlite.errors import CheckpointError
from flashlite.storage.int8.rounding import block_rows, quantize

NAME, MOST, ROWS, WIDTH = "layers.3.fc1.weight", 127, 40, 24
ZEROS = 2  # a row of zeros
Array = np.ndarray


def on_a_grid() -> Array:
    """Weights that are whole quarters of their row's scale, which is a power of two: every right way to compute gives
    the same, halves included. [ROWS, WIDTH] float32."""
    random = rng()
    quarters = random.integers(-4 * MOST + 1, 4 * MOST, (ROWS, WIDTH))
    quarters[:, 0] = 4 * MOST * random.choice([-1, 1], ROWS)
    quarters[:, 1] = 4 * random.integers(-60, 60, ROWS) + 2
    quarters[0, 0], quarters[1, 0] = 4 * MOST, -4 * MOST
    matrix = quarters / 4 * 2.0 ** random.integers(-4, 5, (ROWS, 1))
    matrix[ZEROS] = 0
    return matrix.astype(np.float32)


def rounded(matrix: Array, step: Array, nearest: Any = np.rint) -> tuple[Array, Array]:
    """Values and scale of a matrix in steps [n, 1], or of other shapes by mistake."""
    divisor = np.where(step > 0, step, np.float32(1))
    values = np.clip(nearest(matrix / divisor), -MOST, MOST)
    return values, np.broadcast_to(step, (len(matrix), 1))[:, 0] if step.shape[1] == 1 else step[0]


def away_from_zero(values: Array) -> Array:
    """Halves go to the larger number."""
    return np.sign(values) * np.floor(np.abs(values) + 0.5)


def largest(matrix: Array) -> Array:
    return np.abs(matrix).max(1, keepdims=True)


def right(matrix: Array) -> tuple[Array, Array]:
    return rounded(matrix, largest(matrix) / np.float32(MOST))


def mistakes(matrix: Array) -> dict[str, Any]:
    """What usual mistakes give."""
    most, signed = np.float32(MOST), matrix.max(1, keepdims=True)
    values, scale = right(matrix)
    return {
        "Each row has a scale of its own.": rounded(matrix, np.abs(matrix).max(keepdims=True) / most),
        "A scale belongs to a row, not to a column.": rounded(matrix, np.abs(matrix).max(0, keepdims=True) / most),
        "The largest weight counts without its sign.": rounded(matrix, signed / most),
        "Round to the nearest number: cutting off moves a weight by up to a whole step.": rounded(
            matrix, largest(matrix) / most, np.trunc
        ),
        "Round to the nearest number: cutting off moves a weight by up to a whole step. ": rounded(
            matrix, largest(matrix) / most, np.floor
        ),
        "Halves go to the even neighbour, as torch.round has it.": rounded(
            matrix, largest(matrix) / most, away_from_zero
        ),
        "Zeros have the scale 0.": (values, np.where(scale > 0, scale, 1)),
        "The largest value is LARGEST, 127: 128 doesn't fit.": rounded(matrix, largest(matrix) / np.float32(128)),
        "A scale is the size of a step: one LARGEST-th of the largest weight.": (values, largest(matrix)[:, 0]),
        "A scale is the size of a step, by which a weight is divided.": (
            values, np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
        ),
    }  # fmt: skip


@pytest.mark.points("10.1", 1)
def test_each_row_is_rounded_in_steps_of_its_own() -> None:
    matrix = on_a_grid()
    calls = [
        Call(partial(quantize, NAME, torch.from_numpy(part.copy())), right(part), what, mistakes(part), 1e-6)
        for part, what in ((matrix, f"a matrix of {ROWS} rows"), (matrix[1:2], "a matrix of one row"))
    ]
    expect_each(calls)
    values, scale = quantize(NAME, torch.from_numpy(matrix.copy()))
    for tensor, dtype, what in ((values, torch.int8, "values"), (scale, torch.float32, "the scale")):
        require(tensor.dtype == dtype, f"{what} in {tensor.dtype}", str(dtype))


@pytest.mark.points("10.1", 1)
def test_no_weight_moves_by_more_than_half_a_step() -> None:
    """Weights with outliers, as trained ones have, in each dtype."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        matrix = torch.from_numpy(rng().standard_t(3, (ROWS, WIDTH)) / 30).to(dtype)
        before = matrix.clone()
        values, scale = quantize(NAME, matrix)
        expect(matrix, before, "matrix afterwards")
        exact = matrix.double().numpy()
        wanted, narrow = largest(exact)[:, 0] / MOST, (before.abs().amax(1) / MOST).float()
        text = "Divide in float32: 16 bits are too few."
        told = {text: narrow} if dtype != torch.float32 else {}
        expect(scale, wanted, f"scale of a matrix in {dtype}", told, 1e-6 * float(wanted.max()))
        moved = np.abs(values.double().numpy() * scale.double().numpy()[:, None] - exact) / wanted[:, None]
        far = float(moved.max())
        require(far <= 0.5001, f"a weight in {dtype} moved by {far:.3f} steps", "half a step", text if told else "")


class Watch(TorchDispatchMode):
    """Notes how many weights the largest tensor has that is made of floats of 32 bits or more, and whether anything
    that is not a number becomes an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self.nan_rounded = 0, False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for each operation."""
        result = function(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        known = {tensor.untyped_storage().data_ptr() for tensor in given}
        for tensor in made:
            if tensor.is_floating_point() and tensor.itemsize >= 4:
                fresh = tensor.untyped_storage().data_ptr() not in known
                self.most = max(self.most, tensor.numel() if fresh else 0)
            elif not tensor.is_floating_point():
                copied = "copy" in str(function) and tensor.dtype == torch.int8
                self.nan_rounded |= copied and any(t.is_floating_point() and bool(t.isnan().any()) for t in given)
        return result


@pytest.mark.points("10.1", 1)
def test_a_matrix_is_rounded_part_by_part() -> None:
    width = 1024
    allowed = block_rows(width) * width
    matrix = torch.from_numpy(rng().standard_normal((3 * block_rows(width) + 5, width))).bfloat16()
    with Watch() as watch:
        found = quantize(NAME, matrix)
    expect(found[1], right(matrix.float().numpy())[1], "scale of a matrix of several parts", tolerance=1e-6)
    moved = ((found[0].float() * found[1][:, None] - matrix.float()).abs() / found[1][:, None]).max()
    require(bool(moved <= 0.5001), f"a weight of a matrix of several parts moved by {moved:.3f} steps", "half a step")
    text = "The matrix need not fit into memory in float32: go through it part by part."
    require(watch.most <= allowed, f"{watch.most} weights in float32 at once", f"{allowed}", text)


@pytest.mark.points("10.1", 1)
def test_rows_of_zeros_and_weights_that_are_hardly_numbers() -> None:
    zeros = np.zeros((3, WIDTH), np.float32)
    zeros[1] = on_a_grid()[0]
    with Watch() as watch:
        found = quantize(NAME, torch.from_numpy(zeros.copy()))
    values, scale = right(zeros)
    told = mistakes(zeros)
    expect(found, (values, scale), "a matrix with rows of zeros", told, 1e-6)
    text = "0 divided by 0 is not a number, and what int8 makes of that differs from processor to processor."
    require(not watch.nan_rounded, "values of rows of zeros are rounded from NaN", "from numbers", text)
    smallest = 2.0**-149  # of float32
    tiny = smallest * np.array([[178, -178, 90, 0], [-180, 60, 170, 1]])  # a 127th of the largest is rounded to one
    tiny = tiny.astype(np.float32)
    wrapped = (np.rint(tiny / np.float32(smallest)).astype(np.int64) + 128) % 256 - 128
    text = "A value beyond 127 doesn't fit into int8, and wraps around: keep the range."
    values, scale = right(tiny)
    expect(quantize(NAME, torch.from_numpy(tiny))[0], values, "values of weights near 1e-43", {text: wrapped})


@pytest.mark.points("10.1", 1)
def test_a_weight_that_is_not_finite_is_refused() -> None:
    width = 1024
    plain = torch.from_numpy(rng().standard_normal((2 * block_rows(width), width))).float()
    for weight in (float("nan"), float("inf"), -float("inf")):
        matrix = plain.clone()
        matrix[int(rng().integers(len(matrix))), int(rng().integers(width))] = weight
        said = message(matrix)
        what = f"a matrix with {weight}"
        require(said is not None, f"{what} was rounded", "CheckpointError", "int8 has no word for such a weight.")
        named = NAME in str(said)
        require(
            named, f"the error for {what} says {said!r:.60}", f"a text with {NAME}", "Name the matrix in the error."
        )


def message(matrix: Tensor) -> str | None:
    """What the error says; None if there is none."""
    try:
        quantize(NAME, matrix)
    except CheckpointError as error:
        return str(error)
    return None
