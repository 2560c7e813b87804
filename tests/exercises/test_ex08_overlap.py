"""Exercise 8.1: reads that go on while this layer, or the layer before, is multiplied."""

from __future__ import annotations

import numpy as np
import pytest
from slow_flash import Flash
from watched_model import EARLY, FIRST, LAYERS, NOTED, TIGHT, Interrupt, Layer, Model

from flashlite.course.checks import require
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
    require(bool(following.early.loaded), f"{what} weren't begun", "begun", EARLY)
    text = "Begin them before the last product: the drive must read while this layer multiplies."
    text = text if following.early.under_way else "Don't wait for them: the next layer does, when its input is known."
    require(layer.next_under_way, f"{what} weren't under way during its product", "under way", text)
    begun = following.ffn.begun
    noted = begun is not None and list(begun.tickets) == following.early.under_way
    require(noted, f"{what} aren't those in following.begun", "the same", NOTED)


@pytest.mark.points("8.1", 1)
def test_a_layers_own_reads_go_on_while_it_multiplies() -> None:
    model = Model()
    for _ in range(8):
        for layer, x in model.token():
            layer.flash.loaded.clear()
            layer.call(x)
            if lacked := sum(map(len, layer.flash.loaded)):
                text = "Multiply what is in DRAM while the missing neurons are read."
                require(layer.read_meanwhile, f"{layer.what}: all reads had ended before it multiplied", "reads", text)
                found, most = f"{layer.what}: the values of {layer.multiplied} rows", layer.pool.num_used + lacked
                text = (
                    "What was computed while reads were under way must be used: only what has landed is computed again."
                )
                require(layer.multiplied <= most, found, f"{most}: of all rows, and of those that landed", text)


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
    for when in ("first", "last", "between"):
        model.write(3)
        layers = model.token()
        layers[0][0].call(layers[0][1])
        layers[1][0].pool.interrupt = when if when != "between" else ""
        if when == "between":
            layers[1][0].call(layers[1][1])
            require(
                bool(model.layers[2].early.under_way), "layer 2: no read is under way before its turn", "one", EARLY
            )
        else:
            interrupted = False
            try:
                layers[1][0].ffn(layers[1][1])
            except Interrupt:
                interrupted = True
            require(interrupted, "an interrupt in a product was swallowed", "that it ends the call")
        layers[1][0].pool.interrupt = ""
        model.settle()


@pytest.mark.points("8.1", 1)
def test_what_is_read_for_nothing_is_counted_and_little() -> None:
    model, likely, named = Model(), dict[int, set[int]](), dict[int, set[int]]()
    wasted, useful, limits = 0, 0, np.zeros(3)  # limits: of likely(), wasted and useful, and wasted of all named
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
    require(useful + wasted > 0, "nothing was read early", "something", EARLY)
    require(2 * useful >= limits[1], f"of what was read early, {useful} neurons were needed", f"{limits[1] / 2:g}")
    most = (limits[0] + limits[2]) / 2
    text = (
        "Of all that the predictor names for another layer's input, much is wrong: likely() leaves the least sure out."
    )
    require(wasted <= most, f"of what was read early, {wasted} neurons were for nothing", f"{most:g}", text)
    counted = sum(layer.ffn.wasted for layer in model.layers)
    text = "Count in self.wasted what was read early and isn't needed." if not counted else ""
    text = "All that was read early was counted, also what was needed." if counted == wasted + useful else text
    require(counted == wasted, f"self.wasted adds up to {counted} neurons", f"{wasted}", text)
