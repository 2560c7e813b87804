"""The report: filled with what a student's commands left, whole where something is missing, answers kept."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from flashlite.bench.result import Result
from flashlite.bench.tables import ladder_markdown
from flashlite.cli.main import app
from flashlite.course.manifest import Course
from flashlite.course.report import known
from flashlite.course.report.page import page
from flashlite.course.report.template import answers, fill, with_answers
from flashlite.errors import FlashliteError

MEASURED = json.loads((ROOT / "results/bench-opt-mini-fp32.json").read_text())
MINE = {"impl": "mine", "plugged": ["ex03 → exercises/ex03_window.py (edited)"], "calls": {"3.2": 1234, "3.3": 0}}


@pytest.fixture
def clone(clone: Course) -> Course:
    """A copy of the course with the report's template."""
    (clone.root / "chapters").mkdir()
    shutil.copyfile(ROOT / "chapters/report.md", clone.root / "chapters/report.md")
    (clone.root / ".flashlite").mkdir()
    return clone


def leave(course: Course, name: str, content: object, age: int = 0) -> Path:
    """A file that a command left, so many seconds ago."""
    path = course.root / ".flashlite" / name
    path.write_text(json.dumps(content))
    os.utime(path, (10**9 - age, 10**9 - age))
    return path


def report(course: Course, monkeypatch: pytest.MonkeyPatch, *args: object) -> Any:
    monkeypatch.chdir(course.root)
    return CliRunner().invoke(app, ["report", *map(str, args)])


# The template


def test_the_courses_template_names_all_that_is_known(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "chapters/report.md").read_text()
    named = re.findall(r"\{\{(\w+)\}\}", text)
    assert sorted(named) == sorted(
        {"machine", "drive_figure", "ladder", "ladder_figure", "calls", "grades", "contests"}
    )
    assert all(re.search(rf"\b{name}\b", text.partition("-->")[0]) for name in named), "a teacher reads them there"
    assert not re.search(r"\d", re.sub(r"\{\{\w+\}\}|<!--.*?-->", "", text, flags=re.DOTALL)), "no number is typed"


def test_names_are_filled_in_and_comments_left_out() -> None:
    assert fill("<!-- for\nteachers -->\n# {{a}} and {{b}}\n", {"a": "1", "b": "{{a}}"}) == "# 1 and {{a}}\n"
    with pytest.raises(FlashliteError, match=r"the report's template has {{c}}: choose among {{a}}, {{b}}"):
        fill("{{c}}", {"a": "1", "b": "2"})


REPORT = "# R\n\n### One?\n\n>\n\n## Middle\n\nnew\n\n### Two?\n\n>\n"


def test_answers_are_kept_and_all_else_is_new() -> None:
    earlier = REPORT.replace("new", "old").replace(
        ">", "> Mine, 1.\n\n```\n# no heading\n### nor this\n```\n\n#### Mine", 1
    )
    kept = with_answers(REPORT, earlier)
    assert kept == REPORT.replace(">", "> Mine, 1.\n\n```\n# no heading\n### nor this\n```\n\n#### Mine", 1)
    assert with_answers(REPORT, kept) == kept
    assert list(answers(kept, {"### One?", "## Middle", "### Two?"})) == ["### One?"]
    assert with_answers(REPORT, REPORT.replace("new", "old")) == REPORT


def test_an_answer_is_kept_where_its_neighbours_question_changed() -> None:
    earlier = REPORT.replace("### Two?\n\n>", "### Former?\n\n> lost?").replace(">", "> first", 1)
    assert with_answers(REPORT, earlier).count("first") == 1
    last = REPORT.replace("### Two?\n\n>", "### Two?\n\nyes\n\n### Former?\n\nkept")
    assert with_answers(REPORT, last).endswith("### Two?\n\nyes\n\n### Former?\n\nkept\n")


# What is known


def test_a_whole_report_has_the_students_figures(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(clone, "bench.json", MEASURED)
    leave(clone, "chapter6.json", MEASURED | MINE | {"new_tokens": 77}, age=100)
    leave(clone, "older.json", MEASURED | MINE, age=200)
    leave(clone, "progress.json", {"3.1": {"points": 4, "status": "PASS"}, "3.2": {"points": 2, "status": "FAIL"}})
    leave(clone, "contest.json", {"policy": {"score": 37.25, "bytes": 3}, "order": {"score": 12}, "odd": 3, "x": {}})
    (clone.root / "exercises/hints.json").write_text('{"3.2": {"shown": 2, "before": [1, 2]}}')
    done = report(clone, monkeypatch)
    assert done.exit_code == 0, done.output
    text = (clone.root / "report/report.md").read_text()
    theirs = Result.from_json(MEASURED | MINE | {"new_tokens": 77})
    assert ladder_markdown(theirs) in text, "the newest of the student's own code, not a newer one of the engine's"
    assert "`--impl mine`: `exercises/ex03_window.py`." in text
    assert f"{theirs.host.processor}, {theirs.host.cores} cores" in text
    assert "3.2 `Window.step` 1,234." in text
    worth = {e.id: e.points for e in clone.exercises if e.chapter == 3}
    first, second = worth["3.1"], worth["3.2"]
    exercises = f"3.1: {first}/{first} · 3.2: 2/{second}, 2 hints"
    assert f"| 3 Windowing | {first + 2}/{sum(worth.values())} | {exercises} |" in text
    assert "- policy: 37.25 points\n- order: 12.00 points" in text
    missing = [line for line in text.splitlines() if line.startswith(known.MISSING)]
    assert len(missing) == 1
    assert "3.3" in missing[0]
    assert "not graded yet. Run `flashlite grade`." in missing[0]
    assert "{{" not in text
    assert "<!--" not in text


VOID = {"meta", "img", "br", "hr"}  # tags that nothing closes


class Page(HTMLParser):
    """What a page holds: its tags, its pictures, and whether every tag that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in {"src", "href", "srcset"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag


def test_the_page_needs_nothing_beside_it(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(clone, "bench.json", MEASURED | MINE)
    assert report(clone, monkeypatch, "--out", "mine").exit_code == 0
    folder = clone.root / "mine"
    text = (folder / "report.html").read_text()
    found = Page(text)
    assert found.open == []
    assert found.tags.count("img") == len(found.sources) == 2
    for source, name in zip(found.sources, ("drive.png", "ladder.png"), strict=True):
        kind, _, content = source.partition(";base64,")
        assert kind == "data:image/png"
        assert base64.b64decode(content) == (folder / name).read_bytes()
        assert f"]({name})" in (folder / "report.md").read_text()
    assert {"table", "blockquote", "h2", "h3"} <= set(found.tags)
    assert sorted(path.name for path in folder.iterdir()) == ["drive.png", "ladder.png", "report.html", "report.md"]


def test_nothing_of_an_answer_is_run() -> None:
    text = page("# <b>T</b>\n\n<script>alert(1)</script>\n\n![x](https://example.org/x.png)", "<b>T</b>", {})
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "<title>&lt;b&gt;T&lt;/b&gt;</title>" in text
    assert "default-src 'none'; img-src data:" in text, "a browser loads nothing from elsewhere"


def test_what_is_missing_is_said_with_its_command(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    done = report(clone, monkeypatch)
    assert done.exit_code == 0, done.output
    for command in ("flashlite bench --impl mine --json .flashlite/bench.json", "flashlite grade", "flashlite contest"):
        assert f"`{command}`" in done.output
    text = (clone.root / "report/report.md").read_text()
    assert all(line in text for line in done.output.splitlines()[1:])
    assert not list((clone.root / "report").glob("*.png"))
    leave(clone, "bench.json", MEASURED)
    done = report(clone, monkeypatch)
    assert "this is the engine's own code. `flashlite bench --impl mine --json" in done.output


def test_answers_survive_another_run(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    report(clone, monkeypatch)
    path = clone.root / "report/report.md"
    path.write_text(path.read_text().replace("### Your name\n\n>", "### Your name\n\n> Ada"))
    leave(clone, "bench.json", MEASURED | MINE)
    report(clone, monkeypatch)
    text = path.read_text()
    assert "### Your name\n\n> Ada\n" in text
    assert "ladder.png" in text
    assert "Ada" in (clone.root / "report/report.html").read_text()


LENIENT = {
    "nothing": b"", "a list": b"[]", "no scores": b'{"policy": {"score": "much"}, "order": {"score": true}, "x": null}',
}  # fmt: skip


@pytest.mark.parametrize("name", LENIENT)
def test_contests_that_cannot_be_read_are_missing(name: str, clone: Course) -> None:
    (clone.root / ".flashlite/contest.json").write_bytes(LENIENT[name])
    assert known.contests(clone).startswith(known.MISSING)


def test_what_cannot_be_read_is_one_line_and_leaves_nothing(clone: Course, monkeypatch: pytest.MonkeyPatch) -> None:
    other = leave(clone, "other.json", {"stages": []})
    done = report(clone, monkeypatch, "--bench", other)
    assert isinstance(done.exception, FlashliteError)
    assert re.fullmatch(r".*other.json is not a result of bench --json: the key '.*' is missing", str(done.exception))
    (clone.root / "chapters/report.md").write_text("{{ladders}}")
    assert "{{ladders}}: choose among" in str(report(clone, monkeypatch).exception)
    (clone.root / "chapters/report.md").unlink()
    assert str(report(clone, monkeypatch).exception).endswith("report.md cannot be read: No such file or directory")
    assert not (clone.root / "report").exists()
