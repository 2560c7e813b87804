"""What makes the site, without Sphinx and without a browser: docstrings, the recorded trace, nothing from elsewhere."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import docstrings
import numpy as np
import play_trace
import pytest
import record_trace

from flashlite.engine import window
from flashlite.engine.budget import plan_budget

ROOT = Path(__file__).parent.parent
SITE = ROOT / "tools/site"


def rst(text: str, *names: str, **targets: str) -> list[str]:
    return [line for line in docstrings.to_rst(inspect.cleandoc(text), names, targets) if line]


def test_a_list_of_parameters_becomes_fields() -> None:
    lines = docstrings.to_rst(inspect.getdoc(plan_budget) or "", list(inspect.signature(plan_budget).parameters))
    assert lines[0] == "Decide how a DRAM budget is spent."
    assert ":param store: the packed model" in lines
    assert any(line.startswith(":raises BudgetError: if the budget is too small") for line in lines)


def test_a_parameter_that_goes_on_stays_one_field_and_attributes_are_told_apart() -> None:
    text = """
    First.

    a, b: one
        and more
    c: two
    """
    assert rst(text, "a", "b") == ["First.", ":param a,\u2060b: one and more", ":ivar c: two"]


def test_parameters_inside_a_paragraph_and_results_are_found() -> None:
    text = "Prose that says: this.\nx: [tokens, d_model]. Returns [tokens, ffn]. Raises ValueError if x is empty."
    assert rst(text, "x") == [
        "Prose that says: this.", ":param x: ``[tokens, d_model]``.", ":returns: ``[tokens, ffn]``.",
        ":raises ValueError: if x is empty.",
    ]  # fmt: skip
    assert rst("Note: x isn't a parameter here.\nMore.") == ["Note: x isn't a parameter here. More."]


def test_code_and_tables_stay_as_they_were_typed() -> None:
    assert rst('model = load("opt-mini")\nmodel.generate(...)')[0] == "::"
    assert rst("a.json    what it is\nb.json    what else")[1:] == [
        "    a.json    what it is",
        "    b.json    what else",
    ]


def test_nothing_but_backticks_is_markup() -> None:
    assert rst("a*b, *args, c_ and |d|") == [r"a\*b, \*args, c\_ and \|d\|"]
    assert rst("row rows[i] of [tokens, 2 * ffn]") == ["row rows[i] of ``[tokens, 2 * ffn]``"]
    assert rst("see `step` and `other`s", step="w.step") == [r"see :py:obj:`step <w.step>` and ``other``\ s"]


def test_every_docstring_of_the_window_is_understood() -> None:
    text = inspect.getdoc(window.Window) or ""
    lines = docstrings.to_rst(text, list(inspect.signature(window.Window).parameters))
    assert [line.split(":")[1] for line in lines if line.startswith(":")] == [
        "param neurons", "param tokens", "param capacity",
    ]  # fmt: skip


def test_a_trace_comes_back_as_it_was() -> None:
    layer = [np.array([0, 1, 62, 125, 2047]), np.array([], np.int64), np.array([61]), np.array([62]), np.array([124])]
    again = play_trace.decode(play_trace.encode(layer))
    assert [a.tolist() for a in again] == [a.tolist() for a in layer]


def test_the_recorded_trace_is_small_and_whole() -> None:
    assert play_trace.FILE.stat().st_size <= 200_000
    recorded = play_trace.read()
    assert len(recorded["tokens"]) >= 100
    for layer in recorded["layers"]:
        assert len(layer) == len(recorded["tokens"])
        for active in layer:
            assert (np.diff(active) > 0).all()
            assert 0 <= active[0] <= active[-1] < recorded["neurons"]


@pytest.mark.slow
def test_the_recorded_trace_is_what_the_bundled_model_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but a few neurons: scores so close to the threshold that another processor rounds them otherwise."""
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path))
    kept = play_trace.read()
    again = record_trace.record("".join(kept["tokens"]))
    assert again["tokens"] == kept["tokens"]
    for then, now in zip(kept["layers"], map(play_trace.decode, again["layers"]), strict=True):
        other = sum(len(np.setxor1d(a, b)) for a, b in zip(then, now, strict=True))
        assert other <= 0.005 * sum(map(len, then))


@pytest.mark.parametrize(
    "path", [p for p in SITE.rglob("*") if p.suffix in {".js", ".css", ".html"}], ids=lambda p: p.name
)
def test_nothing_is_asked_from_another_host(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not re.search(r"(https?:)?//[\w-]+\.\w|@import|@font-face", text)
    assert len(text.splitlines()) <= 270
