"""Exercise 9.1: what neurons make of their products."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from flashlite.course.checks import Call, expect, expect_each, require, rng
from flashlite.families.activation import Activation

TOKENS, NEURONS, LIMIT = 5, 40, 0.75
KINDS = {
    "ReLU": Activation(), "squared ReLU": Activation(power=2), "FATReLU": Activation(threshold=LIMIT),
    "squared FATReLU": Activation(power=2, threshold=LIMIT), "dReLU": Activation(both=True),
    "squared dReLU with a threshold": Activation(2, LIMIT, True),
}  # fmt: skip
Array = np.ndarray


def products() -> Tensor:
    """Multiples of a quarter, some of them just the threshold, so that every value is exact in 16 bits."""
    made = torch.from_numpy(rng().integers(-10, 11, (TOKENS, NEURONS)) / 4).float()
    made[0, :4] = torch.tensor([LIMIT, 0.0, -LIMIT, LIMIT + 0.25])
    return made


def values(kind: Activation, first: Array, second: Array | None) -> Array:
    """One by one, as the task says it."""
    found = np.zeros_like(first)
    for place, product in np.ndenumerate(first):
        value = product**kind.power if product > kind.threshold else 0.0
        if second is not None:
            value *= max(second[place], 0.0) if kind.both else second[place]
        found[place] = value
    return found


def mistakes(kind: Activation, first: Array, second: Array | None) -> dict[str, Array]:
    """What usual mistakes give."""
    limit, power = kind.threshold, kind.power
    other = 1.0 if second is None else np.maximum(second, 0) if kind.both else second
    fired = np.where(first > limit, first, 0)
    found = {
        "The threshold is not subtracted: what is above it stays as it is.": np.maximum(first - limit, 0) ** power
        * other,
        "A product that is just the threshold doesn't fire.": np.where(first >= limit, first, 0) ** power * other,
        "The threshold is missing: ReLU cuts at 0.": np.maximum(first, 0) ** power * other,
    }
    cut = "Only what fires is squared: cut first." if power == 2 else "What isn't above the threshold is 0."
    found[cut] = first**power * other
    square = "The square is missing: self.power is 2." if power == 2 else "Nothing is squared unless self.power is 2."
    found[square] = fired ** (3 - power) * other
    if second is not None:
        if kind.both:
            found["In dReLU the second product passes a ReLU of its own."] = fired**power * second
        else:
            text = "The second product passes a ReLU in dReLU alone, where self.both says so."
            found[text] = fired**power * np.maximum(second, 0)
        found |= {
            "The second product is missing: a gated neuron's value is multiplied by it.": fired**power,
            "Square before you multiply by the second product.": (fired * other) ** power,
            "The values of two products are multiplied, not added.": fired**power + other,
        }
    return found


@pytest.mark.points("9.1", 1)
@pytest.mark.parametrize("gated", [False, True], ids=["not gated", "gated"])
def test_values_of_each_kind(gated: bool) -> None:
    calls = []
    for name, kind in KINDS.items():
        first, second = products(), products().flip(1) if gated else None
        known = None if second is None else second.double().numpy()
        right, wrong = values(kind, first.double().numpy(), known), mistakes(kind, first.double().numpy(), known)
        what = f"values of {name}{', gated' if gated else ''}"
        calls.append(Call(partial(kind.__call__, first, second), right, what, wrong))
    expect_each(calls)


@pytest.mark.points("9.1", 1)
def test_what_does_not_fire_is_exactly_zero_in_each_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for name, kind in KINDS.items():
            first, second = products().to(dtype), products().flip(0).to(dtype)
            silent = ~kind.fires(first)
            found = kind(first, second)
            require(found.dtype == dtype, f"values of {name} are {found.dtype}", f"{dtype}, as the products are")
            expect(
                found[silent], torch.zeros(int(silent.sum())), f"{name} in {dtype} where first isn't above the limit"
            )


@pytest.mark.points("9.1", 1)
def test_values_are_written_into_the_memory_of_the_first_products() -> None:
    text = "Work in place: each new matrix of this size takes DRAM that was meant for neurons."
    for name, kind in KINDS.items():
        for gated in (False, True):
            first, second = products(), products().flip(1) if gated else None
            right = values(kind, first.double().numpy(), None if second is None else second.double().numpy())
            found = kind(first, second)
            same = found.data_ptr() == first.data_ptr()
            require(same, f"values of {name} are in other memory", "the memory of first", text)
            expect(first, right, f"first after the call, {name}")
