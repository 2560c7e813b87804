"""Exercise 9.3: reads that begin before the layer attends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from slow_flash import Array, Flash
from torch import Tensor

from flashlite.course.checks import expect, require, rng
from flashlite.engine.early import EarlyFFN
from flashlite.engine.ffn import StreamedFFN
from flashlite.engine.pool import Pool
from flashlite.engine.timing import IO, REST, Clock
from flashlite.engine.window import Step, Window
from flashlite.storage.bundle import FFNShape

NEURONS, D_MODEL, TOKENS, K = 60, 16, 9, 2
FORGET = "A call was broken off: its neurons may never have landed, so begin with self.forget()."


class CountedWindow(Window):
    """A window that counts its steps."""

    steps = 0

    def step(self, active: Array) -> Step:
        """As any window does."""
        self.steps += 1
        return super().step(active)


class Layer:
    """An FFN of NEURONS neurons, of which each token needs a few, with a window of K tokens."""

    def __init__(self) -> None:
        random, shape = rng(), FFNShape(NEURONS, D_MODEL, 4, 64)
        self.up, self.down = (self._random(random, NEURONS, D_MODEL) for _ in range(2))
        self.bias, self.down_bias = self._random(random, NEURONS) - 3, self._random(random, D_MODEL)
        both = torch.cat([self.up, self.down], 1).numpy().view(np.uint8)
        self.flash, self.early = Flash(both), Flash(both)
        self.window, self.clock = CountedWindow(NEURONS, K, NEURONS), Clock()
        pool = Pool(NEURONS, shape, torch.float32, self.bias)
        pool._buffer.view(np.float32)[:] = np.nan  # what has not landed
        predictor: Any = SimpleNamespace(mask=self.fires, nbytes=0)
        nothing: Any = SimpleNamespace()
        streamed = StreamedFFN(0, nothing, self.bias, self.down_bias)
        calls: Any = SimpleNamespace(tokens=1, sequences=1)
        file: Any = self.flash
        self.ffn = EarlyFFN(streamed, predictor, self.window, file, pool, calls, self.clock)
        self.ffn.early = self.early  # type: ignore[assignment]

    @staticmethod
    def _random(random: np.random.Generator, *shape: int) -> Tensor:
        return torch.from_numpy(random.standard_normal(shape).astype(np.float32))

    def fires(self, x: Tensor) -> Tensor:
        """By token: [tokens, NEURONS] bool."""
        return x @ self.up.T + self.bias > 0

    def needs(self, x: Tensor) -> set[int]:
        """The neurons that any of these tokens needs."""
        return set(self.fires(x).any(0).nonzero().flatten().tolist())

    def right(self, x: Tensor) -> Tensor:
        """The FFN's output, from all neurons."""
        return (x @ self.up.T + self.bias).relu() @ self.down + self.down_bias


def inputs(sequences: int) -> list[Tensor]:
    """The FFN's input for one token after the other: each [sequences, D_MODEL]."""
    numbers = rng().standard_normal((TOKENS, sequences, D_MODEL)).astype(np.float32)
    return [torch.from_numpy(x) for x in numbers]


def check_begun(layer: Layer, t: int, new: set[int], fewer: str = "") -> None:
    """What must hold when `begin` has returned for token t, which needs the neurons `new` from flash.

    fewer: the likely mistake if it reads fewer than these
    """
    what = f"token {t}"
    require(not layer.flash.loaded, f"{what}: reads through self.file", "self.early alone",
            "self.file reads for whoever waits at once; self.early reads while the layer attends.")  # fmt: skip
    steps = layer.window.steps
    text = "The window must move on by each token, and only once." if steps else "The window was not moved on."
    require(steps == t + 1, f"{what}: the window took {steps} steps in {t + 1} tokens", f"{t + 1}", text)
    require(len(layer.early.loaded) > t, f"{what}: begin read nothing", "the neurons of the step",
            "Begin the step's reads: self._submit(step, self.early).")  # fmt: skip
    found = np.sort(layer.early.loaded[-1])
    text = "Forget what is in DRAM only after a call that was broken off." if len(found) > len(new) else fewer
    expect(
        found,
        np.array(sorted(new), np.int64),
        f"{what}: the neurons that are read",
        {text: found} if text and len(found) != len(new) else {},
    )
    require(len(layer.early.under_way) == 1, f"{what}: {len(layer.early.under_way)} batches under way after begin", "1",
            "Don't wait in begin: the drive must read while the layer attends.")  # fmt: skip
    require(isinstance(layer.ffn._begun, Step), f"{what}: self._begun is {layer.ffn._begun!r:.40}", "the step",
            "Note the step in self._begun, or the FFN moves the window on a second time.")  # fmt: skip
    text = "Keep the tickets: the FFN waits for those in self._under_way."
    kept = list(layer.ffn._under_way) == layer.early.under_way
    require(kept, f"{what}: self._under_way lacks tickets", "the tickets of the step's reads", text)


@pytest.mark.points("9.3", 2)
@pytest.mark.parametrize("sequences", [1, 3])
def test_reads_are_under_way_while_the_layer_attends(sequences: int) -> None:
    layer, before = Layer(), list[set[int]]()
    for t, x in enumerate(inputs(sequences)):
        given, active = x.clone(), layer.needs(x)
        layer.ffn.begin(x)
        check_begun(layer, t, active - set().union(*before[-K:]))
        expect(x, given, f"token {t}: x after begin")
        out = layer.ffn(x)
        expect(out, layer.right(x), f"token {t}: the FFN's output", tolerance=1e-4)
        require(layer.window.steps == t + 1, f"token {t}: the window moved on again in the FFN", "once a token")
        before.append(active)


@pytest.mark.points("9.3", 2)
def test_after_a_call_that_was_broken_off_nothing_stale_is_used() -> None:
    layer = Layer()
    first, broken, *others = inputs(2)
    layer.ffn.begin(first)
    check_begun(layer, 0, layer.needs(first))
    layer.ffn(first)
    layer.ffn.begin(broken)  # and attention is interrupted
    before = list[set[int]]()
    for t, x in enumerate([broken, *others]):
        active = layer.needs(x)
        layer.ffn.begin(x)
        stale = len(layer.early.under_way) - 1
        require(stale <= 0, f"{stale} batches that a broken-off call began are still under way", "0", FORGET)
        check_begun(layer, t + 2, active - set().union(*before[-K:]), FORGET)
        before.append(active)
        out = layer.ffn(x)
        require(bool(out.isfinite().all()), f"token {t} after it uses neurons that never landed", "none", FORGET)
        expect(out, layer.right(x), f"the FFN's output, token {t} after it", tolerance=1e-4)


@pytest.mark.points("9.3", 1)
def test_the_time_of_attention_is_not_charged_to_reading() -> None:
    for x in inputs(1):
        layer = Layer()
        layer.clock.start()
        layer.ffn.begin(x)
        part = layer.clock._part
        text = "What follows is attention's time: end with self._clock.switch(REST)."
        require(part == REST, f"the clock is left at part {part}{', waiting for flash' if part == IO else ''}",
                f"{REST}, the rest", text)  # fmt: skip
