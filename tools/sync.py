"""Write exercises/ with its README, and solutions/, from the engine's own code and course.toml: python tools/sync.py.

--check    change nothing; fail if a file isn't what the engine's code gives, or an exercise was edited
--force    write over exercises that were edited
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flashlite.course.generate import generated_files
from flashlite.course.manifest import STUBS, Course, read_course
from flashlite.course.source import digest
from flashlite.errors import FlashliteError

ROOT = Path(__file__).parent.parent


def edited_exercises(course: Course) -> list[str]:
    """Exercise files that are no longer as they were handed out."""
    if not (course.root / STUBS).is_file():
        return []
    paths = [course.root / "exercises" / name for name in course.files]
    known = json.loads((course.root / STUBS).read_text())
    return [path.name for path in paths if path.is_file() and path.name in known and course.is_edited(path)]


def wanted_files(course: Course) -> dict[str, str]:
    """Every file that this tool writes, with its text."""
    files = generated_files(course)
    stubs = {name: files[f"exercises/{name}"] for name in course.files}
    digests = {name: digest(text) for name, text in stubs.items()}
    return {**files, STUBS: json.dumps(digests, indent=1) + "\n"}


def stale_files(course: Course) -> list[str]:
    """Files that aren't what the engine's code gives, and exercises or solutions that course.toml doesn't know."""
    wanted = wanted_files(course)
    paths = {name: course.root / name for name in wanted}
    stale = [n for n, p in paths.items() if not p.is_file() or p.read_text(encoding="utf-8") != wanted[n]]
    present = [path for folder in ("exercises", "solutions") for path in (course.root / folder).glob("ex*.py")]
    return stale + [str(p.relative_to(course.root)) for p in present if str(p.relative_to(course.root)) not in wanted]


def sync(course: Course, force: bool) -> list[str]:
    """Write what is stale. Raises FlashliteError, and writes nothing, if that would undo a student's work."""
    edited = [] if force else edited_exercises(course)
    if edited:
        raise FlashliteError(f"exercises/{edited[0]} was edited: move it away, or write over it with --force")
    wanted, stale = wanted_files(course), stale_files(course)
    for name in wanted.keys() & set(stale):
        (course.root / name).parent.mkdir(exist_ok=True)
        (course.root / name).write_text(wanted[name], encoding="utf-8")
    return stale


def main() -> None:
    course = read_course(ROOT)
    try:
        if "--check" in sys.argv:
            stale = stale_files(course)
            sys.exit(
                f"not as the engine's code gives them, run python tools/sync.py: {', '.join(stale)}" if stale else 0
            )
        written = sync(course, "--force" in sys.argv)
    except FlashliteError as error:
        sys.exit(f"sync: {error}")
    print(f"{len(written)} files written: {', '.join(written)}" if written else "everything is in sync")


if __name__ == "__main__":
    main()
