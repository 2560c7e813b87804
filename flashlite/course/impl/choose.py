"""What `--impl` asks for: whose code each exercise is, and the files that then take the places of modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flashlite.course.manifest import Course, Exercise, place
from flashlite.errors import FlashliteError

CONTEST, POLICY = "contest", "flashlite.engine.policies.entry"  # its slot, and the module that its policy replaces
FOLDERS = {"ref": "", "mine": "exercises", "solutions": "solutions"}  # where whose files are


@dataclass(frozen=True)
class Plug:
    """A file that takes the place of a module.

    from_reference: functions that are the engine's own all the same: other exercises of the file, so that one can be
        judged or run without them, and those that the file has without their bodies
    counted: functions whose calls are counted, with their exercises' ids
    """

    file: str
    from_reference: list[str] = field(default_factory=list)
    counted: dict[str, str] = field(default_factory=dict)


def choose(course: Course, impl: str) -> dict[str, Plug]:
    """The plugs that `--impl` asks for, see `sources`. Raises FlashliteError as it does, or if a file is missing."""
    chosen, plugs = sources(course, impl), {}
    for name, exercises in course.files.items():
        taken = [exercise for exercise in exercises if chosen[exercise.id] != "ref"]
        if len(whose := {chosen[exercise.id] for exercise in taken}) > 1:
            raise FlashliteError(
                f"--impl {impl!r} asks for two files of the name {name}: write ref in place of solutions"
            )
        if taken:
            left = [exercise.qualname for exercise in exercises if exercise not in taken]
            path = existing(course.root / FOLDERS[whose.pop()] / name)
            plugs[taken[0].module] = plug_of(path, taken, [*course.hidden(name), *left])
    if folder := FOLDERS[chosen[CONTEST]]:
        plugs[POLICY] = Plug(str(existing(course.root / folder / f"{CONTEST}_policy.py")))
    return plugs


def sources(course: Course, impl: str) -> dict[str, str]:
    """Whose code runs: ref, mine or solutions, by the exercise's id, and by the contest's name for its policy.

    impl: one of these for all exercises, or a list such as ref,ex03=mine or ref,3.2=mine or ref,contest=mine, each part
        of which changes what those before it say

    Raises FlashliteError for anything else.
    """
    every = [exercise.id for exercise in course.exercises]
    slots = {exercise.slot: [e for e in every if e.startswith(f"{exercise.chapter}.")] for exercise in course.exercises}
    named = slots | {name: [name] for name in (CONTEST, *every)}
    chosen = dict.fromkeys([*every, CONTEST], "ref")  # the contest's policy runs only where it is named
    for part in impl.split(","):
        name, equals, source = part.rpartition("=")
        if source not in FOLDERS or (equals and name not in named):
            raise FlashliteError(
                f"--impl {impl!r} is not understood at {part!r}: write mine, solutions or ref, or ref,3.2=mine with an "
                f"exercise or with {', '.join([*slots, CONTEST])}"
            )
        chosen |= dict.fromkeys(named[name] if equals else every, source)
    return chosen


def plug_of(path: Path, exercises: Sequence[Exercise], from_reference: Sequence[str] = ()) -> Plug:
    """The plug of a file of which these exercises run, each counted. from_reference: see `Plug`."""
    return Plug(str(path), list(from_reference), {exercise.qualname: exercise.id for exercise in exercises})


def existing(path: Path) -> Path:
    """The path, if it is a file. Raises FlashliteError if not."""
    if not path.is_file():
        raise FlashliteError(f"{path} is missing: restore it with `git checkout` or tools/sync.py")
    return path


def describe(course: Course, plugs: dict[str, Plug]) -> list[str]:
    """A line for each plugged file: its slot, or the exercises of it that run; the file; whether it was edited."""
    lines = []
    for plug in plugs.values():
        path = Path(plug.file)
        handed_out = path.name in course.files and path.parent.name == "exercises"
        state = f" ({'edited' if course.is_edited(path) else 'untouched'})" if handed_out else ""
        shown = path.relative_to(course.root) if path.is_relative_to(course.root) else path
        taken = list(plug.counted.values())
        alone = len(taken) < len(course.files.get(path.name, []))  # not the whole file
        name = ", ".join(taken) if alone else path.name.partition("_")[0]
        lines.append(f"{name} → {shown}{state}")
    return lines


def functions_of(plugs: dict[str, Plug]) -> dict[str, str]:
    """The functions that are counted, by their exercises' ids, in order."""
    found = {exercise: name for plug in plugs.values() for name, exercise in plug.counted.items()}
    return {exercise: found[exercise] for exercise in sorted(found, key=place)}
