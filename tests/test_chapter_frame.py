"""What the notebooks take from flashlite.course.chapter."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT

from flashlite.course import chapter
from flashlite.course.manifest import Course, read_course
from flashlite.engine.stages import LADDER
from flashlite.errors import FlashliteError
from flashlite.storage.store import Store


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
    for number in range(8):
        text = chapter.exercises(number).data
        squeezed = " ".join(text.split())
        for exercise in (e for e in course.exercises if e.chapter == number):
            assert f"<b>{exercise.id} {exercise.title}</b>" in text
            for line in exercise.task.strip().splitlines():
                assert " ".join(line.split()) in squeezed
        assert f"flashlite grade {number}" in text


def test_untouched_exercises_are_not_run(
    clone: Course, tiny_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clone.root)
    assert chapter.run_yours(tiny_store, 3, 3) is None
    assert chapter.yours(7, "flashlite.bench.speculative") is None
    printed = capsys.readouterr().out
    assert "exercises/ex03_window.py is untouched" in printed
    assert "exercises/ex07_speculative.py is untouched" in printed


def test_yours_is_the_students_module(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone.root)
    (clone.root / "exercises/ex07_speculative.py").write_text("def expected_tokens(acceptance, draft):\n    return 7\n")
    module = chapter.yours(7, "flashlite.bench.speculative")
    assert module is not None
    assert module.expected_tokens(0.5, 2) == 7


def test_wrong_code_is_one_line_and_no_table(
    clone: Course, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_store: Store
) -> None:
    monkeypatch.chdir(clone.root)
    (clone.root / "exercises/ex03_window.py").write_text("raise ValueError('not finished')\n")

    def beside(store: Store, stage: int, worker: list[str]) -> list[dict[str, object]]:
        raise FlashliteError("stage 3 (window) is wrong")

    monkeypatch.setattr(chapter, "beside_reference", beside)
    assert chapter.run_yours(tiny_store, 3, 3) is None
    captured = capsys.readouterr()
    assert "ex03 → exercises/ex03_window.py (edited)" in captured.out
    assert captured.err == "flashlite: stage 3 (window) is wrong\n"


def test_solutions_beside_the_reference(course: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with torch.enable_grad():  # which a chapter switches off; here it is back afterwards
        store = chapter.begin(4)
        table = chapter.run_yours(store, 4, 4, "solutions")
    assert table is not None
    rows = [line.split("|") for line in table.data.splitlines()[2:4]]
    assert rows[0][6:8] == rows[1][6:8], "the same bytes and reads"
    assert read_course(ROOT).root == ROOT
