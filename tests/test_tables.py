"""What is shown of a benchmark: typed rows that JSON keeps, tables in which nothing is cut, lines of what to trust."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from rich.console import Console

from flashlite.bench import tables
from flashlite.bench.machine import CORES_OF_OTHERS, DRIFT, SCATTER, Disturbance
from flashlite.bench.result import Result
from flashlite.bench.row import DenseCost
from flashlite.errors import FlashliteError

KEPT = sorted((ROOT / "results").glob("bench-*.json"))
QUIET = Disturbance(cores_of_others=CORES_OF_OTHERS, dense_scatter=SCATTER, dense_drift=DRIFT)


def read(name: str) -> Result:
    return Result.from_json(json.loads((ROOT / f"results/{name}.json").read_text()))


@pytest.fixture
def mini() -> Result:
    return read("bench-opt-mini-fp32")


@pytest.fixture
def large() -> Result:
    return read("bench-opt-6.7b-bf16")


def shown(table: tables.Table, width: int = 80, colour: bool = False) -> list[str]:
    """The lines of a table in a terminal of this width."""
    out = io.StringIO()
    Console(file=out, width=width, soft_wrap=True, color_system="standard" if colour else None).print(table)
    return out.getvalue().splitlines()


# Rows


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_results_are_read_and_written_as_they_are(path: Path) -> None:
    kept = json.loads(path.read_text())
    result = Result.from_json(kept)
    written = json.loads(json.dumps(result.to_json()))
    assert Result.from_json(written) == result
    for stage in kept["stages"]:
        stage.pop("records_per_token", None)  # which nobody has ever read
    assert known_to(kept, written) == kept


def known_to(kept: Any, written: Any) -> Any:
    """What is written now, without what there was not yet when the result was kept."""
    if isinstance(kept, dict):
        return {key: known_to(value, written[key]) for key, value in kept.items()}
    if isinstance(kept, list):
        return [known_to(old, new) for old, new in zip(kept, written, strict=True)]
    return written


def test_a_malformed_row_is_refused_by_the_name_of_its_key(mini: Result) -> None:
    dense = mini.dense.to_json()
    wrong = (
        ({k: v for k, v in dense.items() if k != "rest_ms"}, "the key 'rest_ms' is missing"),
        (dense | {"rest_ms": "3"}, "the key 'rest_ms' has the value '3', which is not of type"),
        (dense | {"dram_bytes": True}, "the key 'dram_bytes' has the value True"),
        ([1], r"an object was expected where there is \[1\]"),
    )
    for data, message in wrong:
        with pytest.raises(FlashliteError, match=message):
            DenseCost.from_json(data)
    assert DenseCost.from_json(dense | {"total_ms": 6, "unknown": 1}).total_ms == 6.0
    whole = mini.to_json()
    del whole["stages"][3]["agreement"]
    with pytest.raises(FlashliteError, match="the key 'agreement' is missing"):
        Result.from_json(whole)


# Tables


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_six_columns_fit_80_characters(path: Path) -> None:
    result = Result.from_json(json.loads(path.read_text()))
    for table in (tables.ladder_table(result), tables.peer_table(result)):
        assert len(table.columns) == 6
        assert max(map(len, shown(table))) <= 80


@pytest.mark.parametrize("width", [20, 80, 300])
def test_no_number_is_cut_however_narrow_the_terminal(width: int, large: Result) -> None:
    for table in (tables.ladder_table(large, wide=True), tables.peer_table(large, wide=True)):
        lines = shown(table, width)
        for row in table.rows:
            numbers = r"\s+".join(map(re.escape, row[1:]))
            assert any(re.search(rf"(^|\s){numbers}\s*$", line) for line in lines), row
        assert {word for title in table.columns for word in title.split()} <= set("\n".join(lines).split())


def test_wide_has_all_columns_and_the_readme_has_seven(mini: Result, large: Result) -> None:
    assert len(tables.ladder_table(mini, wide=True).columns) == 12
    for text in (tables.ladder_markdown(mini), tables.peer_markdown(large)):
        head, alignment = re.findall(r"^\|.*$", text, re.MULTILINE)[:2]
        assert head.count("|") == 8
        assert alignment == "| --- |" + " ---: |" * 6


def ends(line: str, cells: Sequence[str]) -> tuple[int, ...]:
    """Where each cell of a line ends, but for the first."""
    found, at = [], 0
    for cell in cells:
        at = line.index(cell, at) + len(cell)
        found.append(at)
    return tuple(found[1:])


def test_numbers_are_right_aligned_with_the_same_digits(mini: Result) -> None:
    table = tables.ladder_table(mini)
    for column in range(1, 5):
        assert {len(row[column].partition(".")[2]) for row in table.rows} == {2}
    assert len({ends(line, row) for line, row in zip(shown(table)[-8:], table.rows, strict=False)}) == 1
    assert tables.numbers([0.184, 99.4]) == ["0.18", "99.40"]
    assert tables.numbers([0.184, 999.4]) == ["0.2", "999.4"]
    assert tables.numbers([0.184, 1000.4]) == ["0", "1000"]
    assert tables.numbers([]) == []


def test_exactness_and_agreement_have_a_sign_and_a_colour(mini: Result) -> None:
    best, near, wrong = (
        replace(mini.stages[5], tokens_equal=equal, agreement=agreement)
        for equal, agreement in ((True, 1.0), (True, 0.97), (False, 0.97))
    )
    table = tables.ladder_table(replace(mini, stages=[best, near, wrong]))
    assert [row[-1] for row in table.rows] == ["✓ 100%", "✓ ≈97%", "✗ ≈97%"]
    coloured = "\n".join(shown(table, colour=True))
    assert all(f"\x1b[{code}m{sign}" in coloured for code, sign in ((32, "✓"), (33, "≈"), (31, "✗")))
    assert "\x1b" not in "\n".join(shown(table))
    assert all(sign in tables.LEGEND for sign in "✓≈✗")


# Lines


def test_a_quiet_machine_is_not_mentioned(mini: Result, large: Result) -> None:
    for result in (mini, replace(mini, disturbance=QUIET), replace(large, disturbance=Disturbance(None, None, None))):
        assert "trusted" not in "".join(tables.summary_lines(result))


@pytest.mark.parametrize(
    ("disturbance", "sign"),
    [
        (replace(QUIET, cores_of_others=1.26), "other processes used 1.3 cores before the run"),
        (replace(QUIET, dense_scatter=0.24), "the dense model's own tokens scatter by 24%"),
        (replace(QUIET, dense_drift=0.5), "the dense model's time changed by 50% during the run"),
    ],
)
def test_a_busy_machine_is_told_in_one_line_and_kept(disturbance: Disturbance, sign: str, mini: Result) -> None:
    busy = replace(mini, disturbance=disturbance)
    lines = [line for line in tables.summary_lines(busy) if "trusted" in line]
    assert lines == [f"✗ these times are not to be trusted: {sign}"]
    assert busy.to_json()["disturbance"] == vars(disturbance) | {"signs": [sign]}
    assert Result.from_json(busy.to_json()) == busy


def test_a_peak_above_the_cap_is_explained(mini: Result) -> None:
    (line,) = (line for line in tables.summary_lines(mini) if line.startswith("peak RSS"))
    assert "above the memory cap because RSS counts the libraries' pages that other processes have in memory" in line
    most = max(stage.peak_rss_bytes for stage in mini.stages)
    for cap in (replace(mini.memory_cap, bytes=most), replace(mini.memory_cap, bytes=None)):
        assert "above the memory cap" not in "".join(tables.summary_lines(replace(mini, memory_cap=cap)))
