"""Exercises that a command is going to run and that nobody has solved yet, told by reading their files."""

from __future__ import annotations

from collections.abc import Iterable

from flashlite.arguments import parse_stages
from flashlite.course.impl.choose import choose, functions_of
from flashlite.course.impl.solved import orders, solved_alone
from flashlite.course.manifest import find_course
from flashlite.errors import FlashliteError

STAGES_OF = {  # the stages that call an exercise's function, of OPT; tests/test_arguments.py holds all of these
    "0.1": "0-6", "1.1": "0-6", "1.2": "0-6", "2.1": "2-6", "2.2": "2-6", "2.5": "2-5", "3.2": "2-6", "3.3": "3-6",
    "4.2": "2-6", "5.1": "5-6", "5.2": "5-6", "5.3": "5", "6.1": "2-6", "8.1": "6", "9.1": "6",
}  # fmt: skip
COST_MODEL = {"0.2", "0.3"}
PROBE = {"0.1"}
PACK, INT8_PACK, INT8_STAGES = {"4.1"}, {"10.1"}, {"10.2"}  # of pack, and in int8 of pack and of every stage as well
ESTIMATE = COST_MODEL | {"1.1", "1.3", "2.5", "4.2"}
TRAIN = {"0.1", "1.1", "1.2", "2.2", "2.3", "2.4", "2.7", "3.1", "4.2"}
CALIBRATE = {"0.1", "1.1", "1.2", "2.2", "2.4", "2.6", "3.1", "4.2"}
CHOOSE = {"6.1", "6.2"}  # by train-predictor with a budget, beside those of TRAIN
INT8 = "int8"


def of_stages(stages: Iterable[int], dtype: str | None = None) -> set[str]:
    """The exercises, by id, that at least one of these stages calls. dtype: the model's, if it is named."""
    found = {exercise for exercise, of in STAGES_OF.items() if not set(stages).isdisjoint(parse_stages(of))}
    return found | INT8_STAGES if dtype == INT8 else found


def of_pack(layouts: str, dtype: str | None) -> set[str]:
    """The exercises, by id, that packing calls. layouts: as `--layout` has them; dtype: the store's, if named."""
    return (PACK if "bundled" in layouts else set()) | (INT8_PACK if dtype == INT8 else set())


def check_solved(impl: str, called: set[str]) -> None:
    """Raise FlashliteError if one of the exercises that will be called, by id, is a stub in the file that `--impl`
    names for it."""
    if impl == "ref":
        return
    course = find_course()
    plugs = choose(course, impl)
    taken = functions_of(plugs)
    running = [exercise for exercise in course.exercises if exercise.id in called and exercise.id in taken]
    if not (left := orders(running, plugs)):
        return
    solved = [exercise.id for exercise in running if exercise.id not in left]
    instead = solved_alone(course, impl, solved, list(left))
    advice = f"; to run what is solved, write --impl {instead}" if instead else ""
    raise FlashliteError(next(iter(left.values())) + advice)
