"""Gradescope: the results.json that its autograders write, and the zip that makes the course such an autograder.

Both are as Gradescope's "Autograder Specifications" say, gradescope-autograders.readthedocs.io/en/latest/specs.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flashlite.course.grade import Grade
from flashlite.course.manifest import STUBS, Course, Exercise
from flashlite.errors import StoreError, one_line
from flashlite.storage.atomic import new_file

SCRIPTS = "tools/gradescope"  # setup.sh and run_autograder, which a teacher may change
GRADED = "graded.txt"  # the ids of the exercises that the autograder grades
TOP = ("course.toml", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", STUBS)
LEFT_OUT = {"__pycache__", ".ipynb_checkpoints"}
NOT_COMPRESSED = (".safetensors",)  # weights, which no compression makes much smaller
MADE = (2020, 1, 1, 0, 0, 0)  # the time of every file, so that the same course gives the same zip


def results(grades: Sequence[Grade], seed: int, seconds: float) -> dict[str, Any]:
    """What results.json says of grades. seed: of the inputs; seconds: how long the grading took."""
    most = sum(g.max for g in grades)
    return {
        "score": sum(g.points for g in grades),
        "execution_time": round(seconds),
        "output": f"{sum(g.points for g in grades)} of {most} points, inputs of seed {seed}",
        "output_format": "text",
        "stdout_visibility": "hidden",
        "extra_data": {"seed": seed, "max_score": most, "hints": {g.id: list(g.hints) for g in grades if g.hints}},
        "tests": [_test(g) for g in grades],
    }


def refused(reason: str) -> dict[str, Any]:
    """What results.json says where there was nothing to grade."""
    return {"score": 0, "output": reason, "output_format": "text", "stdout_visibility": "hidden", "tests": []}


def _test(grade: Grade) -> dict[str, Any]:
    said = {"PASS": "", "TODO": "nothing written yet"}.get(grade.status, f"{grade.status}: {grade.message}")
    return {
        "number": grade.id,
        "name": f"{grade.id} {grade.title}",
        "score": grade.points,
        "max_score": grade.max,
        "status": "passed" if grade.status == "PASS" else "failed",
        "output": said,
        "output_format": "text",
        "visibility": "visible",
    }


def write_zip(course: Course, out: Path, exercises: Iterable[Exercise]) -> int:
    """Write the zip of an autograder that grades these exercises; returns how many files it holds.

    It holds the engine, whose code is the reference, and the tests, but no solutions. Raises StoreError.
    """
    members = {path.name: path for path in (course.root / SCRIPTS).glob("*") if path.is_file()}
    members |= {name: course.root / name for name in TOP}
    members |= {str(p.relative_to(course.root)): p for folder in ("flashlite", "tests/exercises")
                for p in sorted((course.root / folder).rglob("*")) if _wanted(p)}  # fmt: skip
    contents = {GRADED: " ".join(exercise.id for exercise in exercises).encode() + b"\n"}
    with one_line(out, StoreError, "cannot be written"), new_file(out) as zipped, zipfile.ZipFile(zipped, "w") as file:
        for name in [GRADED, *members]:
            _add(file, name, contents.get(name) or members[name].read_bytes())
    return len(members) + 1


def _wanted(path: Path) -> bool:
    return path.is_file() and LEFT_OUT.isdisjoint(path.parts) and not path.name.startswith(".")


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file; the two scripts may be run."""
    info = zipfile.ZipInfo(name.replace("\\", "/"), MADE)
    info.external_attr = (0o755 if "/" not in name and content.startswith(b"#!") else 0o644) << 16
    info.compress_type = zipfile.ZIP_STORED if name.endswith(NOT_COMPRESSED) else zipfile.ZIP_DEFLATED
    archive.writestr(info, content)
