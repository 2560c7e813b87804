"""Exercise 8.1: reads that go on while this layer, or the layer before, is multiplied."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import pytest
from slow_flash import Flash
from watched_model import EARLY, FIRST, LAYERS, NOTED, TIGHT, Layer, Model

from flashlite.course.checks import engines_own, require
from flashlite.errors import ReadError


@pytest.mark.points("8.1", 1)
def test_the_next_layers_reads_go_on_while_a_layer_multiplies() -> None:
    model = Model()
    for _ in range(8):
        for layer, x in model.token():
            following = layer.next
            new = bool(following and np.setdiff1d(following.ffn.likely(x), following.window.held).size)
            before = len(following.flash.loaded) if following else 0
            layer.call(x)
            if following and new:
                check_begun(layer, following, len(following.flash.loaded) > before)


def check_begun(layer: Layer, following: Layer, by_file: bool) -> None:
    """What must hold when a layer was called whose next layer will need new neurons. by_file: whether `file` read."""
    what = f"{layer.what}: the next layer's reads"
    require(not by_file, f"{what} went through file", "early alone", "Early reads go through following.early.")
    require(bool(following.early.loaded), f"{what} weren't begun", "", EARLY)
    text = "Begin them before the last product: the drive must read while this layer multiplies."
    text = text if following.early.under_way else "Don't wait for them: the next layer does, when its input is known."
    require(all(layer.next_under_way), f"{what} weren't under way during its product", "", text)
    begun = following.ffn.begun
    noted = begun is not None and list(begun.tickets) == following.early.under_way
    require(noted, f"{what} aren't those in following.begun", "", NOTED)


@pytest.mark.points("8.1", 1)
def test_a_layers_own_reads_go_on_while_it_multiplies() -> None:
    model = Model()
    for _ in range(8):
        for layer, x in model.token():
            layer.flash.loaded.clear()
            layer.call(x)
            if lacked := sum(map(len, layer.flash.loaded)):
                text = "Multiply what is in DRAM while the missing neurons are read."
                require(layer.read_meanwhile, f"{layer.what}: all reads had ended before it multiplied", "", text)
                found, needed = f"{layer.what}: the values of {layer.multiplied} neurons", len(layer.window.newest)
                text = (
                    "What was computed while reads were under way must be used: only what has landed is computed again."
                )
                most = f"{needed + lacked}: of those that the token needs, and again of those that landed"
                require(layer.multiplied <= needed + lacked, found, most, text)


@pytest.mark.points("8.1", 1)
def test_the_output_is_right_whenever_reads_land() -> None:
    for sequences in (1, 3):
        model = Model(sequences=sequences)
        for _ in range(8):
            for flash in (flash for layer in model.layers for flash in (layer.flash, layer.early)):
                flash.hurries = model.random.random() < 0.5
            model.write(1)
        (_, same), *_ = model.token()
        for guessed in (LAYERS, 0, FIRST):  # at last, all that is guessed for layer FIRST is in DRAM
            for layer, x in model.token():
                layer.call(same if layer.number < guessed else x)
                layer.check_window()


@pytest.mark.points("8.1", 1)
def test_the_output_is_right_where_dram_is_short() -> None:
    Model(capacity=TIGHT).write(12)


@pytest.mark.points("8.1", 1)
@pytest.mark.parametrize("kind", ["flash", "early"])
def test_a_read_that_fails_is_an_error_and_leaves_no_wrong_token(kind: str) -> None:
    model = Model()
    model.write(3)
    failing: Flash = getattr(model.layers[2], kind)
    failing.fails, before = True, sum(map(len, failing.loaded))
    with_error = False
    for _ in range(4):
        try:
            model.write(1)
        except ReadError:
            with_error = True
            break
    failing.fails = False
    read = sum(map(len, failing.loaded)) > before
    require(read, f"layer 2: nothing was read through {kind if kind == 'early' else 'file'}", "its neurons", EARLY)
    if with_error:
        model.settle()
    model.write(4)


@pytest.mark.points("8.1", 1)
def test_a_call_that_is_broken_off_leaves_no_wrong_token() -> None:
    model = Model()
    model.turn()
    model.settle()
    for moment in count(1):
        model.write(2)
        if (broken := model.break_off(moment)) is None:
            break
        model.settle(broken)
    model.settle()
    model.write(2)


@pytest.mark.points("8.1", 1)
def test_what_is_read_for_nothing_is_counted_and_little(record_property: Callable[[str, object], None]) -> None:
    model = Model()
    wasted, useful, limits = early_reads(model)
    require(useful + wasted > 0, "nothing was read early", "", EARLY)
    require(2 * useful >= limits[1], f"of what was read early, {useful} neurons were needed", f"{limits[1] / 2:g}")
    most = (limits[0] + limits[2]) / 2
    text = (
        "Of all that the predictor names for another layer's input, much is wrong: likely() leaves the least sure out."
    )
    require(wasted <= most, f"of what was read early, {wasted} neurons were for nothing", f"{most:g}", text)
    counted = sum(layer.ffn.wasted for layer in model.layers)
    text = "Count in self.wasted what was read early and isn't needed." if not counted else ""
    text = "All that was read early was counted, also what was needed." if counted == wasted + useful else text
    require(counted == wasted, f"self.wasted adds up to {counted} neurons instead of {wasted}", "", text)
    by_reference, needed, _ = early_reads(Model(ffn=engines_own("flashlite.engine.overlap").OverlappedFFN))
    theirs = f"of the engine's own {needed} of {needed + by_reference}"
    record_property("read early", f"{useful} of {useful + wasted} neurons were needed, {theirs}")


def early_reads(model: Model) -> tuple[int, int, np.ndarray]:
    """How many neurons 16 tokens read early that weren't needed, and that were, and limits of these.

    The limits are those that likely() names wrongly and rightly, and those that the predictor names wrongly.
    """
    likely, named = dict[int, set[int]](), dict[int, set[int]]()
    wasted, useful, limits = 0, 0, np.zeros(3)
    for _ in range(16):
        for layer, x in model.token():
            early, begun = layer.early.loaded, likely.get(layer.number, set())
            read = set(np.concatenate(early).tolist()) if early else set()
            early.clear()
            active = layer.named(x)
            wasted, useful = wasted + len(read - active), useful + len(read & active)
            limits += len(begun - active), len(begun & active), len(named.get(layer.number, set()) - active)
            if (following := layer.next) is not None:
                held = set(following.window.held.tolist())
                likely[following.number] = set(following.ffn.likely(x).tolist()) - held
                named[following.number] = following.named(x) - held
            layer.call(x)
    return wasted, useful, limits
