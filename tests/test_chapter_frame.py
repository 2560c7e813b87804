"""What the notebooks take from flashlite.course.chapter."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from conftest import ROOT
from IPython.display import Markdown

from flashlite.course import chapter, paper, yours
from flashlite.course.counting import FOLDER
from flashlite.course.manifest import Course, read_course
from flashlite.course.stand_in import CONFIGS, stand_in
from flashlite.engine.stages import LADDER
from flashlite.errors import FlashliteError
from flashlite.storage.find import open_model
from flashlite.storage.store import Store
from flashlite.training.evaluate import evaluate


@pytest.mark.parametrize("stage", range(1, len(LADDER)))
def test_the_change_is_the_line_of_the_code(stage: int) -> None:
    name = list(LADDER)[stage]
    text = chapter.change(stage).data
    line = next(
        x for x in (ROOT / "flashlite/engine/stages.py").read_text().splitlines() if x.startswith(f"{name.upper()} =")
    )
    assert line in text
    assert f"| stage {stage} {name} |" in text


def test_every_exercise_is_told_in_full(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "chapters")
    for number in course.chapters:
        text = chapter.exercises(number).data
        squeezed = " ".join(text.split())
        for exercise in (e for e in course.exercises if e.chapter == number):
            assert f"<b>{exercise.id} {exercise.title}</b>" in text
            assert f"· {exercise.worth} · {exercise.minutes} min" in text
            for line in exercise.task.strip().splitlines():
                assert " ".join(line.split()) in squeezed
        assert f"flashlite grade {number}" in text


def test_untouched_exercises_are_not_run(
    clone: Course, tiny_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clone.root)
    assert chapter.run_yours(tiny_store, 3) is None
    assert chapter.run_yours(tiny_store, 7, {"7.1": lambda tokens: tokens(0.5, 2)}) is None
    printed = capsys.readouterr().out
    assert "exercises/ex03_window.py is untouched" in printed
    assert "exercises/ex07_speculative.py is untouched" in printed


def test_a_chapters_model_in_another_dtype_is_that_model(
    tiny_checkpoint: Path, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path))
    monkeypatch.setenv(chapter.MODEL, str(tiny_checkpoint))
    store = chapter.in_dtype("int8")
    assert (store.dtype_name, store.up_projections) == ("int8", tiny_store.up_projections)


def test_what_your_function_gives_is_shown_beside_the_engines(
    clone: Course, tiny_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clone.root)
    (clone.root / "exercises/ex07_speculative.py").write_text("def expected_tokens(acceptance, draft):\n    return 7\n")
    table = chapter.run_yours(tiny_store, 7, {"7.1": lambda tokens: tokens(0.5, 2)})
    assert "7.1 expected_tokens: yours 7, the engine's 1.75" in capsys.readouterr().out
    assert table is not None
    assert "| 7.1 | `expected_tokens` | 1 |" in table.data
    assert "| 7.2 | `expected_speedup` | 0 |" in table.data


def test_what_is_not_solved_yet_runs_as_the_engines_and_is_told(
    clone: Course, tiny_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clone.root)
    path = clone.root / "exercises/ex07_speculative.py"
    path.write_text(re.sub(r'raise NotImplementedError\("exercise 7\.1.*', "return 7", path.read_text()))
    shown = {"7.1": lambda tokens: tokens(0.5, 2), "7.2": lambda gain: gain(0.5, 2, 0.1, 1.0)}
    table = chapter.run_yours(tiny_store, 7, shown)
    printed = capsys.readouterr().out
    assert printed.startswith("7.1 → exercises/ex07_speculative.py (edited)\nNot solved yet, so the engine's own code ")
    assert "7.1 expected_tokens: yours 7, the engine's 1.75" in printed
    assert "7.2 expected" not in printed
    assert table is not None
    assert "7.2" not in table.data


def test_what_your_function_raises_is_one_line_with_its_place(
    clone: Course, tiny_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clone.root)
    (clone.root / "exercises/ex07_speculative.py").write_text("def expected_tokens(a, draft):\n    return a / 0\n")
    assert chapter.run_yours(tiny_store, 7, {"7.1": lambda tokens: tokens(0.5, 2)}) is None
    assert capsys.readouterr().err == "flashlite: ex07_speculative.py:2: return a / 0  → ZeroDivisionError: " + (
        "float division by zero\n"
    )


def test_wrong_code_is_one_line_and_no_table(
    clone: Course, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_store: Store
) -> None:
    monkeypatch.chdir(clone.root)
    (clone.root / "exercises/ex05_pool.py").write_text("raise ValueError('not finished')\n")

    def beside(store: Store, stage: int, worker: list[str], **options: object) -> list[dict[str, object]]:
        raise FlashliteError("stage 5 (pool) is wrong")

    monkeypatch.setattr(yours, "beside_reference", beside)
    assert chapter.run_yours(tiny_store, 5) is None
    captured = capsys.readouterr()
    assert "ex05 → exercises/ex05_pool.py (edited)" in captured.out
    assert captured.err == "flashlite: stage 5 (pool) is wrong\n"


def test_a_command_that_fails_is_its_line_and_no_table(
    clone: Course, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_store: Store
) -> None:
    monkeypatch.chdir(clone.root)
    path = clone.root / "exercises/ex01_families.py"
    text = path.read_text()
    path.write_text(text + "# begun\n")
    assert chapter.run_yours(tiny_store, 1) is None
    assert "no exercise in exercises/ex01_families.py, " in capsys.readouterr().out
    path.write_text(re.sub(r"raise NotImplementedError.*", "return config.nothing", text))
    assert chapter.run_yours(tiny_store, 1) is None
    captured = capsys.readouterr()
    assert "ex01 → exercises/ex01_families.py (edited)" in captured.out
    assert "Not solved yet, so the engine's own code runs: 1.1, 1.2\n" in captured.out
    assert "$ flashlite estimate opt-6.7b --drive 870 --impl ref,1.3=mine" in captured.out
    assert captured.err.startswith("flashlite: ex01_families.py:")
    assert FOLDER not in os.environ


@pytest.mark.slow
def test_what_your_code_packs_is_what_the_engine_then_reads(
    clone: Course, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clone.root)
    monkeypatch.delenv(chapter.MODEL, raising=False)
    text = (ROOT / "solutions/ex04_bundle.py").read_text()
    assert text.count("[up, down.T]") == 1
    (clone.root / "exercises/ex04_bundle.py").write_text(text.replace("[up, down.T]", "[down.T, up]"))
    assert chapter.run_yours(open_model("opt-mini"), 4) is None
    captured = capsys.readouterr()
    assert "mine: 6 layers" in captured.out
    assert "stage 4 (bundle) is wrong" in captured.err
    assert list((clone.root / ".flashlite").iterdir()) == []


def test_table_3_is_the_papers_whole_beside_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    rows = [line for line in chapter.table_3().data.splitlines() if "**" in line]
    assert len(rows) == len(paper.TABLE_3)
    for theirs, row in zip(paper.TABLE_3, rows, strict=True):
        assert row.startswith(f"| {theirs.model} | {theirs.system} | {theirs.io_ms} + {theirs.memory_ms} + ")
        assert f"**{theirs.total_ms:,}**" in row
    measured = chapter.result("bench-opt-6.7b-bf16")
    assert measured is not None
    found = {row.name: f"**{row.total_ms:,.0f}** |" for row in measured.stages}
    assert rows[0].endswith(found["naive"])
    assert rows[1].endswith(found["pool"])
    missing = [row for row in rows if "CPU" in row and "OPT" not in row]
    monkeypatch.setattr(chapter, "result", lambda name: measured if "falcon" in name else None)
    told = [line for line in chapter.table_3().data.splitlines() if "**" in line]
    assert told[6].endswith(found["naive"])
    assert told[7].endswith(found["resident"])
    assert told[8].endswith(found["pool"])
    assert all(row.endswith("| not measured yet |") for row in [told[0], *told[9:]])
    assert len(missing) == 12


def test_what_is_published_of_relufied_models_is_a_share_and_names_its_source() -> None:
    for model in paper.RELUFIED:
        assert 0.5 < model.zeros < 1
        assert re.fullmatch(r"\[.+\]\(https://.+\)", model.source)
        assert (model.before is None) == (model.after is None)


def test_a_stand_in_is_written_once_and_fires_as_it_says(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone.root)
    store = stand_in("gated")
    assert store.path == clone.root / ".flashlite/gated"
    assert store.shape.matrices == 3
    assert stand_in("gated").manifest == store.manifest
    found = evaluate(store, chapter.held_out(store, 512), "copy").layers
    assert all(0.02 < layer.active < 0.1 for layer in found)


def test_a_command_that_names_a_model_measures_that(
    clone: Course, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clone.root)
    assert yours._measured("bench --stage 3 --window auto", tiny_store) == (
        tiny_store, {"--stage": "3", "--window": "auto"},
    )  # fmt: skip
    gated = stand_in("gated")
    model, options = yours._measured("bench .flashlite/gated --stage 5 --predictor copy", tiny_store)
    assert model.path == gated.path
    assert options == {"--stage": "5", "--predictor": "copy"}


def run_yours_cell(number: int) -> str:
    """The code of a chapter's "run yours" cell."""
    (path,) = (ROOT / "chapters").glob(f"{number:02d}_*.ipynb")
    cells = [c for c in nbformat.read(path, as_version=4).cells if "run-yours" in c.metadata.get("tags", [])]
    return "\n".join(cell.source for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("number", read_course(ROOT).chapters)
def test_each_exercise_of_a_chapter_is_called_by_its_cell(
    number: int, course: Course, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cell as it stands in the notebook, but on the solutions, and on a small sample of what fires."""
    monkeypatch.chdir(ROOT / "chapters")
    monkeypatch.delenv(chapter.MODEL, raising=False)
    tables: list[Markdown | None] = []

    def run(store: Store, number: int, shown: Mapping[str, yours.Show] | None = None) -> None:
        tables.append(yours.run_yours(store, number, shown, "solutions"))

    monkeypatch.setattr(chapter, "run_yours", run)
    monkeypatch.setattr(yours, "beside_reference", partial(yours.beside_reference, tokens=6))
    with torch.enable_grad():  # which a chapter switches off; here it is back afterwards
        store = chapter.begin(number)
        for name in CONFIGS if number == 9 else ():
            stand_in(name)
        fired = torch.rand(64, store.shape.neurons) < 0.05
        names = {"chapter": chapter, "store": store, "np": np, "fired": fired}
        if number == 10:
            names["int8"] = chapter.in_dtype("int8")
        exec(run_yours_cell(number), names | {"acceptance": 0.5, "DRAFT": 4, "check_cost": 1.5})
    captured = capsys.readouterr()
    (table,) = tables
    assert table is not None, captured.err
    assert ("870 EVO" in captured.out) == ("$ flashlite estimate" in captured.out), "what the command says is shown"
    assert '{"' not in captured.out
    calls = {e: int(n) for e, n in re.findall(r"^\| (\d+\.\d) \| `[\w.]+` \| (\d+) \|$", table.data, re.MULTILINE)}
    assert set(calls) == {e.id for e in course.exercises if e.chapter == number}
    assert all(calls.values()), f"never called: {[exercise for exercise, n in calls.items() if not n]}"
    for exercise, ours, theirs in re.findall(r"^(\S+) \w+: yours (.+), the engine's (.+)$", captured.out, re.MULTILINE):
        assert ours == theirs, exercise
    rows = re.findall(r"^\| (?:the engine's|your) code \|(.+)$", table.data, re.MULTILINE)
    for ours, theirs in zip(*([row.split("|") for row in rows[half::2]] for half in (0, 1)), strict=True):
        assert ours[4:6] == theirs[4:6], "the same bytes and reads"
