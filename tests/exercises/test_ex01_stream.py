"""Exercise 1.1: a ReLU feed-forward block by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from flashlite.course.checks import expect, require, rng
from flashlite.engine.stream import relu_ffn

TOKENS, NEURONS, WIDTH, PADDING = 5, 13, 8, 3


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, up, bias and down; up and down are views of one matrix, as they are in DRAM."""
    random = rng()
    x, rows, bias = (random.standard_normal(s) for s in ((TOKENS, WIDTH), (NEURONS, 2 * WIDTH + PADDING), NEURONS))
    matrix = torch.from_numpy(rows).to(dtype)
    up, down = matrix[:, :WIDTH], matrix[:, WIDTH : 2 * WIDTH]
    return torch.from_numpy(x).to(dtype), up, torch.from_numpy(bias).to(dtype), down


def numbers(*tensors: Tensor) -> list[np.ndarray]:
    """Tensors as float64 arrays."""
    return [tensor.double().numpy() for tensor in tensors]


def by_loop(x: np.ndarray, up: np.ndarray, bias: np.ndarray, down: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The block, one token and one neuron at a time."""
    out = np.zeros_like(x)
    for t in range(len(x)):
        for j in range(len(up)):
            activation = sum(x[t, c] * up[j, c] for c in range(x.shape[1])) + bias[j]
            if keep[t, j] and activation > 0:
                out[t] += activation * down[j]
    return out


def relu(values: np.ndarray) -> np.ndarray:
    """Negative values become 0."""
    return np.maximum(values, 0)


@pytest.mark.points("1.1", 1)
def test_block_is_what_a_plain_loop_computes() -> None:
    x, up, bias, down = given = inputs()
    X, U, b, D = numbers(*given)
    h = X @ U.T + b
    mistakes = {
        "The ReLU is missing: negative activations must become 0.": h @ D,
        "The ReLU belongs between the two products, not on the output.": relu(h @ D),
        "The output has no ReLU: only the activations do.": relu(relu(h) @ D),
        "The up projection's bias is missing.": relu(X @ U.T) @ D,
        "The bias must be added before the ReLU.": (relu(X @ U.T) + b) @ D,
        "A negative activation becomes 0; its absolute value is not asked for.": np.abs(h) @ D,
    }
    all_kept = np.ones((TOKENS, NEURONS), bool)
    expect(relu_ffn(x, up, bias, down), by_loop(X, U, b, D, all_kept), "the block's output", mistakes, 1e-3)


@pytest.mark.points("1.1", 1)
def test_keep_leaves_neurons_out_by_token() -> None:
    x, up, bias, down = given = inputs()
    X, U, b, D = numbers(*given)
    keep = rng().random((TOKENS, NEURONS)) < 0.6
    keep[2] = False
    h = X @ U.T + b
    mistakes = {
        "`keep` was ignored.": relu(h) @ D,
        "False leaves a neuron out, True keeps it.": (relu(h) * ~keep) @ D,
        "A neuron that is left out must not give relu(bias): apply `keep` after the bias.": relu((X @ U.T) * keep + b)
        @ D,
        "Each token has a row of `keep` of its own.": (relu(h) * keep[0]) @ D,
        "Each token has a row of `keep` of its own, so a neuron that one token leaves out stays for the others.": (
            relu(h) * keep.all(0)
        )
        @ D,
    }
    found = relu_ffn(x, up, bias, down, torch.from_numpy(keep))
    expect(found, by_loop(X, U, b, D, keep), "the output with `keep`", mistakes, 1e-3)


@pytest.mark.points("1.1", 1)
@pytest.mark.filterwarnings("error")
def test_dtype_stays_and_arguments_too() -> None:
    keep = torch.from_numpy(rng().random((TOKENS, NEURONS)) < 0.6)
    for dtype in (torch.float32, torch.bfloat16):
        given = (*inputs(dtype), keep)
        copies = [tensor.clone() for tensor in given]
        found = relu_ffn(*given)
        require(found.dtype == dtype, f"inputs of {dtype} gave {found.dtype}", f"{dtype}")
        X, U, b, D = numbers(*copies[:4])
        right = by_loop(X, U, b, D, keep.numpy())
        rounding = 0.04 * float((relu(np.abs(X) @ np.abs(U.T) + np.abs(b)) @ np.abs(D)).max())
        expect(found, right, f"the output in {dtype}", {}, rounding)
        for name, now, before in zip(("x", "up", "bias", "down", "keep"), given, copies, strict=True):
            require(torch.equal(now, before), f"`{name}` was changed", "no change", "Arguments belong to the caller.")
