"""The notebooks: what each must have, that its outputs are kept, and that it runs."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import run_chapters

from flashlite.course.manifest import Exercise, read_course

ROOT = Path(__file__).parent.parent
CHAPTERS = run_chapters.notebooks([])
IDS = [path.stem for path in CHAPTERS]
EACH = pytest.mark.parametrize("path", CHAPTERS, ids=IDS)


def cells(path: Path, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def prose(path: Path) -> str:
    return "\n\n".join(cell.source for cell in cells(path, "markdown"))


def test_there_is_a_notebook_for_every_chapter_of_the_course() -> None:
    course = read_course(ROOT)
    assert [int(path.name[:2]) for path in CHAPTERS] == list(range(11))
    for number, title in course.chapters.items():
        assert prose(CHAPTERS[number]).startswith(f"# {number}. {title.split(' on top')[0].split(' in half')[0]}")


@EACH
def test_a_chapter_opens_and_ends_as_all_do(path: Path) -> None:
    text, code = prose(path), "\n".join(cell.source for cell in cells(path, "code"))
    number = int(path.name[:2])
    opening = cells(path, "markdown")[0].source
    for promised in ("**You will be able to**", "**Before this**", "minutes**", "**difficulty"):
        assert promised in opening
    assert f"chapter.begin({number})" in cells(path, "code")[0].source, "the machine is named in the first output"
    for heading in (
        "## What changes in the ladder",
        "## Think",
        "<summary>Answers</summary>",
        "## What you have gained",
    ):
        assert heading in text
    if number in read_course(ROOT).chapters:
        assert f"chapter.exercises({number})" in code
        assert [c for c in cells(path, "code") if "run-yours" in c.metadata.get("tags", [])]
    if 1 <= number <= 5:
        assert f"compare(store, [{number - 1 if number > 1 else 0}, {number}])" in code
        assert f"chapter.change({number})" in code
        assert re.search(r"assert after\.(bytes|reads)_per_token", code), "the chapter's claim, counted"


@EACH
def test_the_course_map_gives_the_minutes_of_the_notebook(path: Path) -> None:
    minutes = re.search(r"\*\*(\d+) minutes\*\*", prose(path))
    row = next(line for line in (ROOT / "chapters/README.md").read_text().splitlines() if f"({path.name})" in line)
    assert minutes is not None
    assert f"| {minutes[1]} min |" in row


def test_the_course_map_gives_the_exercises_of_the_manifest() -> None:
    course = read_course(ROOT)
    rows = [line for line in (ROOT / "chapters/README.md").read_text().splitlines() if line.startswith("| [")]
    for number in course.chapters:
        chosen = [e for e in course.exercises if e.chapter == number]
        assert f"| {len(chosen)} · {sum(e.minutes for e in chosen)} min |" in rows[number]


@EACH
def test_no_library_code_in_notebooks(path: Path) -> None:
    for cell in cells(path, "code"):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 10, f"{node.name} belongs into the library"


@EACH
def test_outputs_are_kept_complete_and_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    text = path.read_text()
    assert not re.search(r"(?<![\w.:/])/(work|home|root|tmp|usr|var|opt)/", text), "a path of the machine that ran it"
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        assert cell.execution_count, f"cell {i} was not run"
        assert all(output.output_type != "error" for output in cell.outputs)
        assert all(output.get("name") != "stderr" for output in cell.outputs)
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            following = next(c.source for c in notebook.cells[i:] if c.cell_type == "markdown")
            assert "**What to see.**" in following, f"cell {i}: a figure without a sentence that says what to see"


@EACH
def test_a_chapter_shows_the_drawing_and_leads_to_the_glossary(path: Path) -> None:
    assert "](images/system-light.svg)" in prose(path)
    assert "](GLOSSARY.md)" in prose(path)


@EACH
def test_a_name_is_imported_in_the_cell_that_first_uses_it(path: Path) -> None:
    trees = [ast.parse(cell.source) for cell in cells(path, "code")]
    used = [{node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} for tree in trees]
    for i, tree in enumerate(trees):
        for node in tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for name in (alias.asname or alias.name.split(".")[0] for alias in node.names):
                    first = next((k for k, names in enumerate(used) if name in names), None)
                    assert first == i, f"{name} is imported in cell of code {i} and first used in {first}"


@pytest.mark.parametrize("exercise", read_course(ROOT).exercises, ids=lambda exercise: exercise.id)
def test_an_exercise_is_named_where_its_idea_is_fresh(exercise: Exercise) -> None:
    """The line stands in a cell that tells of the exercise, which is before the list of all at the end."""
    place = f"`{exercise.qualname}` in `exercises/{exercise.file}`"
    line = f"> ✎ **{exercise.id}** · {place} · `flashlite grade {exercise.id}`"
    told = [
        cell.source for cell in cells(CHAPTERS[exercise.chapter], "markdown") if f"**{exercise.id}**" in cell.source
    ]
    assert len(told) == 1
    assert line in told[0]
    assert f"**{exercise.id}**" in told[0].replace(line, ""), "the text tells of it as well"


def untracked() -> str:
    return subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home of their own for the chapters that run in this process. The first to need a packed model packs it."""
    before = untracked()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLASHLITE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")  # more would wait for each other
        yield
    assert untracked() == before, "running a chapter leaves nothing behind"


@pytest.mark.slow
@EACH
@pytest.mark.usefixtures("home")
def test_a_chapter_runs(path: Path) -> None:
    folder = ROOT if int(path.name[:2]) % 2 else ROOT / "chapters"  # students start from either
    executed = run_chapters.run(path, folder)
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
