"""What figures show, read from their parts: no length that misleads, a number on each part, nothing under a legend."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from flashlite import plots
from flashlite.bench.result import Result
from flashlite.bench.row import PeerRow
from flashlite.plots.style import plt, spoken, spoken_bytes

ROOT = Path(__file__).parent.parent


def result(name: str) -> Result:
    return Result.from_json(json.loads((ROOT / f"results/{name}.json").read_text()))


@pytest.fixture(autouse=True)
def _close_figures() -> Any:
    yield
    plt.close("all")


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def names(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def series(figure: Figure) -> dict[str, list[float]]:
    return {str(line.get_label()): list(map(float, line.get_xdata())) for line in figure.axes[0].lines}


def bars(axes: Any) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.123, "0.12"),
        (4.392, "4.39"),
        (42.55, "42.5"),
        (466.4, "466"),
        (13316.9, "13,317"),
        (52, "52"),
        (-2.0, "-2.00"),
    ],
)
def test_numbers_have_the_same_digits_everywhere(value: float, text: str) -> None:
    assert spoken(value) == text


def test_bytes_are_spoken_in_their_unit() -> None:
    given = (13_316_900_000, 801_600_000, 4_390_000, 2048, 12)
    assert [spoken_bytes(n) for n in given] == ["13.3 GB", "802 MB", "4.39 MB", "2.05 kB", "12.0 B"]


def test_peers_are_dots_whose_kinds_differ() -> None:
    measured = result("bench-opt-6.7b-bf16")
    figure = plots.peers(measured)
    assert not bars(figure.axes[0])
    kinds = series(figure)
    assert sorted(kinds["flashlite, by stage"]) == sorted(row.total_ms for row in measured.stages)
    assert sorted(kinds["what people use today"]) == sorted(peer.cost.total_ms for peer in measured.peers if peer.cost)
    assert kinds["all in DRAM, no cap"] == [measured.dense.total_ms]
    marks = [(line.get_marker(), line.get_markerfacecolor()) for line in figure.axes[0].lines]
    assert len({mark for mark, _ in marks}) == len({face for _, face in marks}) == 3


def test_a_peer_that_was_killed_is_named_and_has_no_dot() -> None:
    measured = result("bench-opt-6.7b-bf16")
    peers = [PeerRow(peer.name, None) for peer in measured.peers]
    figure = plots.peers(replace(measured, peers=peers))
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert [f"{peer.name}: out of memory" for peer in peers] == rows[:3]
    assert "what people use today" not in series(figure)


def test_estimates_are_dots_in_seconds_and_no_line_joins_drives() -> None:
    stages = {"naive": 13.3e9, "pool": 0.2e9}
    drives = {"the drive of the measured run": {"naive": 5000.0, "pool": 500.0},
              "SD card: A2": {"naive": 240_000.0, "pool": 5000.0}}  # fmt: skip
    run = result("bench-opt-mini-fp32")
    run = replace(run, stages=[replace(run.stages[0], total_ms=4500.0)])
    figure = plots.estimates({"model": "opt-6.7b", "drives": drives, "bytes_per_token": stages}, run)
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    assert list(lines["0 naive"].get_xdata()) == [5.0, 240.0]
    assert list(lines["1 pool"].get_xdata()) == [0.5, 5.0]
    assert list(lines["measured"].get_xdata()) == [4.5]
    assert lines["measured"].get_ydata()[0] == lines["0 naive"].get_ydata()[0], "the ring is around its stage's dot"
    assert all(lines[name].get_linestyle() == "None" for name in ("0 naive", "1 pool", "measured"))


def test_every_part_of_a_stacked_bar_has_its_number() -> None:
    rows = {"47%": {"resident": 34.8, "predictors": 0.31, "neurons": 0.62},
            "80%": {"resident": 34.8, "predictors": 0.31, "neurons": 28.7}}  # fmt: skip
    figure = plots.stacked(rows, "title", "MB", "{:.1f}")
    wanted = [f"{value:.1f}" for parts in rows.values() for value in parts.values()]
    assert sorted(texts(figure)) == sorted(wanted)


def test_low_stages_have_a_panel_of_their_own_and_their_labels_are_only_there() -> None:
    measured = result("bench-opt-6.7b-bf16")
    figure = plots.ladder(measured)
    left, right = figure.axes
    assert [text.get_text() for text in left.get_xticklabels()][-2:] == ["5 pool", "6 overlap"]
    low = [row for row in measured.stages if row.total_ms < 0.35 * measured.stages[0].total_ms]
    assert [text.get_text() for text in right.get_xticklabels()] == [row.title for row in low]
    assert len(left.texts) + len(right.texts) == len(measured.stages)
    assert all(text.get_bbox_patch().get_facecolor()[:3] == (1, 1, 1) for text in right.texts), "no line through it"


def test_a_ladder_without_low_stages_is_one_panel() -> None:
    figure = plots.ladder(result("bench-opt-mini-fp32"))
    assert len(figure.axes) == 1
    assert len(figure.axes[0].texts) == 7


def test_parts_of_a_token_differ_by_hatch_as_well_as_by_shade() -> None:
    figure = plots.parts(result("bench-opt-mini-fp32").stages, "title")
    looks = {(patch.get_facecolor(), patch.get_hatch()) for patch in bars(figure.axes[0])}
    assert len({shade for shade, _ in looks}) == len({hatch for _, hatch in looks}) == 3


@pytest.mark.parametrize("name", ["short", "a name of more than twenty-four characters"])
def test_a_legend_covers_no_point(name: str) -> None:
    curves = {f"{name} {i}": ([0, 1, 2], [i, i + 1, i]) for i in range(4)}
    figure = plots.lines(curves, "title", "x", "y")
    figure.canvas.draw()
    assert names(figure) == list(curves)
    legend, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
    assert not legend.overlaps(axes)


def test_curves_by_size_and_budget_name_their_stages_once() -> None:
    by_size = plots.sizes([result(f"bench-{size}-bf16") for size in ("opt-1.3b", "opt-2.7b", "opt-6.7b")])
    assert names(by_size) == ["0 naive", "5 pool", "6 overlap", "dense, all in DRAM"]
    by_budget = plots.budgets([result(f"bench-opt-6.7b-bf16{share}") for share in ("-37", "-70")])
    assert len(names(by_budget)) == len(set(names(by_budget)))
    assert all(axes.get_ylim()[0] == 0 for axes in by_budget.axes)


# Other families


def cells(figure: Figure) -> list[list[str]]:
    return [[text.get_text() for text in axes.texts] for axes in figure.axes]


def test_a_gated_neuron_is_three_pieces_or_one_record_in_its_order_on_flash() -> None:
    split, bundled = cells(plots.layouts(wanted=[1], neurons=2, gated=True))
    assert split == ["g0", "g1", "d0", "d1", "u0", "u1"]
    assert bundled == ["g0", "d0", "u0", "g1", "d1", "u1"]
    assert cells(plots.layouts(wanted=[1], neurons=2)) == [["u0", "u1", "d0", "d1"], ["u0", "d0", "u1", "d1"]]


def test_rounded_weights_lie_on_the_steps_of_their_panel_and_the_strokes_are_their_errors() -> None:
    weights, scales = np.array([0.3, -1.26, 2.0, 0.0]), {"fine": 0.25, "coarse": 1.0}
    figure = plots.steps(weights, scales, "title")
    for axes, (name, scale) in zip(figure.axes, scales.items(), strict=True):
        *grid, squares, circles = axes.lines
        most = int(2.0 / scale) + 1
        assert [line.get_ydata()[0] for line in grid] == [k * scale for k in range(-most, most + 1)]
        rounded = scale * np.rint(weights / scale)
        assert list(circles.get_ydata()) == list(weights)
        assert list(squares.get_ydata()) == list(rounded)
        (strokes,) = axes.collections
        ends = [segment[:, 1].tolist() for segment in strokes.get_segments()]
        assert ends == [list(pair) for pair in zip(weights, rounded, strict=True)]
        assert axes.get_title() == f"{name}: steps of {scale:.2g}"
    assert names(figure) == ["rounded to a whole step", "weight"]


def test_a_timeline_has_a_bar_for_each_moment_where_and_as_long_as_it_was() -> None:
    lanes = {"processor": [("attention", 0.0, 2.0), ("FFN", 2.0, 2.5)], "drive": [("reads", 0.5, 1.5)]}
    figure = plots.timeline(lanes, "title")
    drawn = [(bar.get_x(), bar.get_width()) for bar in bars(figure.axes[0]) if bar.get_width()]
    assert drawn == [(0.0, 2.0), (2.0, 0.5), (0.5, 1.0)]
    assert names(figure) == ["attention", "FFN", "reads"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["processor", "drive"]
    looks = {(bar.get_facecolor(), bar.get_hatch()) for bar in bars(figure.axes[0])}
    assert len(looks) == 3, "each kind of work differs from the others"


# Files


def test_a_figure_that_cannot_be_drawn_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plots.save(plots.bars({"a": 1.0}, "", ""), tmp_path / "a figure.png")
    before = path.read_bytes()

    def broken(figure: Figure, place: Path, **_: object) -> None:
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="No space left"):
        plots.save(plots.bars({"b": 2.0}, "", ""), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a figure.png"]


@pytest.mark.parametrize(("name", "begin"), [("a.svg", b"<?xml"), ("a.PDF", b"%PDF"), ("a.png", b"\x89PNG")])
def test_the_ending_says_the_format_and_a_link_keeps_its_place(name: str, begin: bytes, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(tmp_path / "target")
    plots.save(plots.bars({"a": 1.0}, "", ""), tmp_path / name)
    assert (tmp_path / name).is_symlink()
    plots.save(plots.bars({"a": 1.0}, "", ""), tmp_path / f"other-{name}")
    for path in (tmp_path / "target", tmp_path / f"other-{name}"):
        assert path.read_bytes().startswith(begin)
