"""Exercise 1.2: neurons of a layer, read from flash into rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flashlite.course.checks import expect, require, rng
from flashlite.drive.backends import Batch, Serial
from flashlite.drive.direct import PAGE, aligned_buffer, direct_alignment
from flashlite.drive.flash import FlashFile
from flashlite.drive.reads import Reads
from flashlite.storage.bundle import FFNShape
from flashlite.storage.neurons import NeuronFile, wait_all

LAYERS, NEURONS, UNTOUCHED = 3, 40, 7
PIECES = {"split": ("up", "down"), "bundled": ("bundle",)}
Array = np.ndarray


class Recorder(Serial):
    """Carries reads out and counts those that were handed over."""

    started = 0

    def submit(self, fd: int, reads: Reads) -> Batch:
        self.started += reads.number
        return super().submit(fd, reads)


class Flash:
    """A file of random neurons in one layout, whose layers and pieces lie in random order with gaps between.

    content: by layer [NEURONS, 2 * half] uint8, each row [up | down]; padded: whether a record is longer than that.
    """

    def __init__(self, folder: Path, layout: str, padded: bool = False) -> None:
        random, path = rng(), folder / f"{layout}-{padded}"
        path.touch()
        grid = max(PAGE, direct_alignment(path))
        self.half = grid * 3 // 4 if padded else grid
        self.shape = FFNShape(NEURONS, self.half // 4, 4, grid)
        self.content = random.integers(0, 256, (LAYERS, NEURONS, 2 * self.half), np.uint8)
        places = [(layer, piece) for layer in range(LAYERS) for piece in PIECES[layout]]
        begins, data = {}, b""
        for i in random.permutation(len(places)):
            data += random.bytes(grid * int(random.integers(1, 4)))
            begins[places[i]] = len(data)
            data += self._piece(*places[i])
        path.write_bytes(data)
        self.recorder = Recorder()
        store: Any = SimpleNamespace(
            shape=self.shape, layers=LAYERS, layouts=(layout,), path=folder, weight_bytes=self.content.nbytes,
            piece_offset=lambda layout, layer, piece: begins[layer, piece],
            open_ffn=lambda layout, backend=None: FlashFile(path, backend),
        )  # fmt: skip
        self.file = NeuronFile(store, layout, self.recorder)

    def _piece(self, layer: int, piece: str) -> bytes:
        content, half = self.content[layer], self.half
        if piece != "bundle":
            return bytes(content[:, :half] if piece == "up" else content[:, half:])
        return bytes(np.pad(content, ((0, 0), (0, self.shape.record_bytes - 2 * half))))

    def buffer(self, rows: int) -> Array:
        """Rows for neurons, on the drive's grid, each byte UNTOUCHED."""
        buffer = aligned_buffer(rows, self.shape.record_bytes)
        buffer[:] = UNTOUCHED
        return buffer

    def landed(self, layer: int, neurons: Array, rows: Array, count: int) -> Array:
        """What `count` rows should hold, padding left out."""
        out = np.full((count, 2 * self.half), UNTOUCHED, np.uint8)
        out[rows] = self.content[layer, neurons]
        return out

    def down_on_up(self, layer: int, neurons: Array, rows: Array, count: int) -> Array:
        """What they would hold if both pieces landed at the row's beginning."""
        out = np.full((count, 2 * self.half), UNTOUCHED, np.uint8)
        out[rows, : self.half] = self.content[layer, neurons, self.half :]
        return out


@pytest.mark.points("1.2", 1)
@pytest.mark.parametrize("layout", ["split", "bundled"])
def test_neurons_land_in_their_rows(tmp_path: Path, layout: str) -> None:
    random = rng()
    for padded in (False, True):
        flash = Flash(tmp_path, layout, padded)
        for layer in random.permutation(LAYERS).tolist():
            neurons, rows = random.permutation(NEURONS)[:12], random.permutation(NEURONS)[:12]
            buffer, content = flash.buffer(NEURONS), flash.content[layer]
            wait_all(flash.file.submit(layer, neurons, flash.file.columns(buffer), rows))
            found, where = buffer[:, : 2 * flash.half], f"{layout}, layer {layer}"
            mistakes = {
                "`rows` was ignored: neuron i must land in buffer[rows[i]].": flash.landed(
                    layer, neurons, np.arange(12), NEURONS
                )[rows],
                "Neurons landed in the row of their own number, not in buffer[rows[i]].": flash.landed(
                    layer, neurons, neurons, NEURONS
                )[rows],
                "Neurons were sorted, and their rows not with them.": content[np.sort(neurons)],
                "Down landed on up: piece p belongs in matrices[p].": flash.down_on_up(layer, neurons, rows, NEURONS)[
                    rows
                ],
                "Nothing was read.": np.full((12, 2 * flash.half), UNTOUCHED),
            }
            for other in range(LAYERS):
                mistakes[f"These are neurons of layer {other}."] = flash.content[other, neurons]
            expect(found[rows], content[neurons], f"{where}: bytes in buffer[rows]", mistakes)
            changed = int((found != flash.landed(layer, neurons, rows, NEURONS)).any(1).sum())
            require(changed == 0, f"{where}: {changed} rows that `rows` doesn't name were changed", "0")


@pytest.mark.points("1.2", 1)
@pytest.mark.parametrize("layout", ["split", "bundled"])
def test_adjacent_neurons_cost_one_read_a_piece(tmp_path: Path, layout: str) -> None:
    random = rng()
    flash, pieces = Flash(tmp_path, layout), len(PIECES[layout])
    first = np.arange(0, NEURONS, 8) + random.integers(0, 3, 5)
    neurons = np.concatenate([np.arange(begin, begin + random.integers(2, 6)) for begin in first])
    rows = random.permutation(NEURONS)[: len(neurons)]
    buffer, order = flash.buffer(NEURONS), random.permutation(len(neurons))
    wait_all(flash.file.submit(1, neurons[order], flash.file.columns(buffer), rows[order]))
    counters, allowed = flash.file.counters, pieces * len(first)
    mistake = "Hand all records of a piece to one FlashFile.submit, which merges adjacent ones."
    mistake = mistake if counters.reads > allowed else ""
    where = f"for {len(neurons)} neurons in {len(first)} runs, {layout}"
    require(0 < counters.reads <= allowed, f"{counters.reads} reads {where}", f"{allowed}", mistake)
    allowed = len(neurons) * 2 * flash.half
    too_much = "Read just the neurons that are asked for, each once." if counters.bytes > allowed else ""
    require(counters.bytes == allowed, f"{counters.bytes} bytes {where}", f"{allowed}", too_much)
    expect(buffer[:, : 2 * flash.half], flash.landed(1, neurons, rows, NEURONS), f"{layout}: the rows' bytes")


@pytest.mark.points("1.2", 1)
def test_submit_starts_reads_and_returns(tmp_path: Path) -> None:
    flash, neurons, rows = Flash(tmp_path, "split"), np.array([9, 3, 4, 30]), np.array([2, 0, 5, 1])
    buffer, copies = flash.buffer(NEURONS), (neurons.copy(), rows.copy())
    tickets = flash.file.submit(0, neurons, flash.file.columns(buffer), rows)
    require(flash.recorder.started > 0, "0 reads were started", "6", "submit hands the reads to the drive.")
    require(
        flash.file.counters.reads == 0, f"submit waited for {flash.file.counters.reads} reads", "0",
        "The caller waits on the tickets; submit only starts the reads.",
    )  # fmt: skip
    wait_all(tickets)
    done, started = flash.file.counters.reads, flash.recorder.started
    require(done == started, f"{done} reads had a ticket", f"all {started}", "Return the tickets of all pieces.")
    expect(buffer[:, : 2 * flash.half], flash.landed(0, neurons, rows, NEURONS), "the rows' bytes")
    expect((neurons, rows), copies, "neurons and rows after the call")
    none = np.zeros(0, np.int64)
    wait_all(flash.file.submit(2, none, flash.file.columns(buffer), none))
    require(flash.file.counters.reads == done, "no neurons cost reads", "0 reads")
    up = aligned_buffer(4, flash.half)
    tickets = flash.file.submit(1, neurons, [up], np.arange(4))
    wait_all(tickets)
    mistake = "Only as many pieces are read as there are matrices."
    require(len(tickets) == 1, f"{len(tickets)} tickets for one matrix", "1", mistake)
    expect(up, flash.content[1, neurons, : flash.half], "one matrix: rows of the first piece")
