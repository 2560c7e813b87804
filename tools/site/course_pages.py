"""Pages made from what the repository keeps as data: the exercises' tasks, and the measured results."""

from __future__ import annotations

import json
from pathlib import Path

from api_pages import place
from repository_files import ROOT

from flashlite import plots
from flashlite.bench.result import Result
from flashlite.bench.tables import ladder_markdown, peer_markdown
from flashlite.course.manifest import Exercise, read_course

TASKS = """# All tasks

What each exercise asks for, as its file says it. [The list](README.md) has the command that runs your code in the
engine, and `flashlite hint 3.2` helps with 3.2.
"""
RESULTS = """# Results

Each benchmark that this repository keeps: its table, its figure, and the file with all that was measured. Stages and
peers ran one after another on the same weights and the same prompt, and each had to give the dense model's tokens
before its time was taken. [What was tried](NOTES.md) says which levers paid and which didn't.
"""


def write_tasks(pages: Path) -> None:
    """The page of all tasks."""
    course = read_course(ROOT)
    parts = [TASKS]
    for number, title in sorted(course.chapters.items()):
        chosen = [exercise for exercise in course.exercises if exercise.chapter == number]
        parts += [f"## {number}. {title}\n", *map(task, chosen)] if chosen else []
    place(pages / "exercises/tasks.md", "\n".join(parts))


def task(exercise: Exercise) -> str:
    """One task, with its example as it was typed."""
    stars = "★" * exercise.difficulty + "☆" * (3 - exercise.difficulty)
    points = f"{exercise.points} points" if exercise.points else "a warm-up, without points"
    at_hand = f"At hand: {exercise.provided}" if exercise.provided else ""
    return (
        f"### {exercise.id} {exercise.title}\n\n"
        f"[`{exercise.qualname}` in `exercises/{exercise.file}`]({exercise.file}) · {points} · {exercise.minutes} "
        f"minutes · {stars}\n\n{paragraphs(exercise.task)}\n\n```text\n{exercise.example.strip()}\n```\n\n"
        f"{paragraphs(at_hand)}\n"
    )


def paragraphs(text: str) -> str:
    """A task's lines as paragraphs."""
    return "\n\n".join(plain(line.strip()) for line in text.splitlines() if line.strip())


def plain(line: str) -> str:
    """A line in which what stands in backticks is code, and nothing else is markup."""
    pieces = line.split("`")
    for i in range(0, len(pieces), 2):
        for mark in "\\*_<[#$":
            pieces[i] = pieces[i].replace(mark, "\\" + mark)
    return "`".join(pieces)


def write_results(pages: Path) -> None:
    """The page of all results, and its figures."""
    files = sorted((ROOT / "results").glob("bench-*.json"))
    results = {path: Result.from_json(json.loads(path.read_text(encoding="utf-8"))) for path in files}
    files.sort(key=lambda path: (results[path].dense.dram_bytes, path.name))  # small models first
    parts = [section(path.name, results[path], pages / "results") for path in files]
    place(pages / "results/index.md", "\n".join([RESULTS, *parts]))


def section(file: str, result: Result, folder: Path) -> str:
    """One result: its tables, and its figure drawn anew. file: its name; folder: of the figure."""
    figure = plots.save(plots.ladder(result), folder / file.replace(".json", "-ladder.png"))
    peers = f"\nBeside what people use today:\n\n{peer_markdown(result)}\n" if result.peers else ""
    budget = f"{result.budget_share:.0%} of its weights in memory"
    return (
        f"## {result.title} {result.dtype}, {budget}\n\n{ladder_markdown(result)}\n{peers}\n"
        f"![One token's time by stage]({figure.name})\n\n[{file}]({file}) has all that was measured.\n"
    )
