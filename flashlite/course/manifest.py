"""course.toml: the one place that says which exercises there are, what they ask, and which code is their reference."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashlite.course.source import digest, read_source
from flashlite.errors import FlashliteError

MANIFEST = "course.toml"
STUBS = "exercises/stubs.json"  # the digest of each exercise file as it was handed out


@dataclass(frozen=True)
class Exercise:
    """One thing to build.

    id: chapter.number
    points: 0 for a warm-up, which is graded and earns nothing
    reference: module:function or module:Class.method, the engine's own code
    task, example, provided: the contract, put in the stub
    why, mistakes: what the solution says
    topic: of its file, the module's name unless given
    hidden: other functions of its module whose bodies would show how it is solved, so its file has them without; the
        engine's own run in their place
    run: a command that calls it, without `flashlite` and `--impl`; empty if the chapter's last cell calls it
    hints: shown one at a time
    """

    id: str
    title: str
    points: int
    minutes: int
    difficulty: int
    paper: str
    reference: str
    task: str
    example: str
    why: str
    mistakes: str
    provided: str = ""
    topic: str = ""
    run: str = ""
    hints: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)

    @property
    def worth(self) -> str:
        """Its points as they are shown: "3 points", or "warm-up"."""
        return f"{self.points} points" if self.points else "warm-up"

    @property
    def chapter(self) -> int:
        """The chapter it belongs to."""
        return int(self.id.split(".")[0])

    @property
    def slot(self) -> str:
        """What `--impl` calls the chapter's exercises: ex03."""
        return f"ex{self.chapter:02}"

    @property
    def module(self) -> str:
        """The module of the engine that its file takes the place of: flashlite.engine.window."""
        return self.reference.partition(":")[0]

    @property
    def qualname(self) -> str:
        """The function's name inside its module: Window.step."""
        return self.reference.partition(":")[2]

    @property
    def file(self) -> str:
        """The name of its file, in exercises/ and in solutions/."""
        return f"{self.slot}_{self.topic or self.module.rpartition('.')[2]}.py"


@dataclass(frozen=True)
class Course:
    """A clone of the course: its root folder, the titles of its chapters, its exercises in order.

    electives: the chapters among them whose points don't count to the course's hundred
    """

    root: Path
    chapters: dict[int, str]
    exercises: tuple[Exercise, ...]
    electives: frozenset[int] = frozenset()

    def is_elective(self, exercise: str) -> bool:
        """Whether an exercise, named by its id, belongs to an elective chapter."""
        return int(exercise.partition(".")[0]) in self.electives

    @property
    def files(self) -> dict[str, list[Exercise]]:
        """The exercises of each file, by its name."""
        files: dict[str, list[Exercise]] = {}
        for exercise in self.exercises:
            files.setdefault(exercise.file, []).append(exercise)
        return files

    def hidden(self, file: str) -> list[str]:
        """The functions that an exercise file has without their bodies, though nobody is asked to write them."""
        exercises = self.files[file]
        asked = {exercise.qualname for exercise in exercises}
        return list(dict.fromkeys(name for e in exercises for name in e.hidden if name not in asked))

    def find(self, identifier: str) -> Exercise:
        """The exercise of this id. Raises FlashliteError that lists them if there is none."""
        for exercise in self.exercises:
            if exercise.id == identifier:
                return exercise
        known = ", ".join(exercise.id for exercise in self.exercises)
        raise FlashliteError(f"there is no exercise {identifier!r}: choose one of {known}")

    def is_edited(self, path: Path) -> bool:
        """Whether an exercise file differs from the stub that was handed out, in more than how its lines end.

        Raises FlashliteError if the list of stubs is missing or damaged.
        """
        stubs = self._stubs()
        try:
            return stubs.get(path.name) != digest(read_source(path))
        except (FlashliteError, OSError):
            return True  # what was handed out could be read

    def _stubs(self) -> dict[str, str]:
        try:
            return dict(json.loads((self.root / STUBS).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            message = f"{self.root / STUBS} is missing or damaged: restore it with `git checkout` or tools/sync.py"
            raise FlashliteError(message) from None


def place(exercise: str) -> tuple[int, ...]:
    """An exercise's place among the others, from its id: 9.3 comes before 10.1."""
    return tuple(map(int, exercise.split(".")))


def find_course(start: Path | None = None) -> Course:
    """The course whose clone we are in. Raises FlashliteError outside one."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / MANIFEST).is_file():
            return read_course(folder)
    raise FlashliteError(f"{here} is not in a clone of the course (no {MANIFEST} here or above): change into one")


def read_course(root: Path) -> Course:
    """The course in a folder. Raises FlashliteError if its manifest is malformed."""
    try:
        content = parse_toml((root / MANIFEST).read_text(encoding="utf-8"))
        core, electives = (_numbered(content[table]) for table in ("chapters", "electives"))
        exercises = tuple(Exercise(**entry) for entry in content["exercise"])
        return Course(root, core | electives, exercises, frozenset(electives))
    except (KeyError, TypeError, ValueError) as error:
        raise FlashliteError(f"{root / MANIFEST} is malformed: {error}") from None


def _numbered(chapters: dict[str, str]) -> dict[int, str]:
    return {int(number): title for number, title in chapters.items()}


def parse_toml(text: str) -> dict[str, Any]:
    """What a TOML text says. Raises ValueError, and FlashliteError where nothing is installed that reads it."""
    try:
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib  # comes with pytest there
    except ModuleNotFoundError:
        raise FlashliteError("the course needs pytest: pip install pytest") from None
    return tomllib.loads(text)
