"""How exercise tests say what is wrong: what was found, what was expected, and which mistake that looks like."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

SEED = "FLASHLITE_SEED"  # set anew for each grading run


def rng() -> np.random.Generator:
    """Where a test's inputs come from: another seed in each grading run, always the same in a plain test run."""
    return np.random.default_rng(int(os.environ.get(SEED, "0")))


def engines_own(name: str) -> ModuleType:
    """The engine's own module of this name, beside what is graded in its place: to show what the reference reaches."""
    path = Path(__file__).parents[2].joinpath(*name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"reference.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


class Wrong(AssertionError):
    """An answer that is wrong; the text names both values and the likely mistake."""


def require(condition: bool, measured: str, allowed: str, mistake: str = "") -> None:
    """Raise Wrong unless the condition holds.

    measured: with units
    allowed: with units; empty where what was measured says it all
    mistake: one sentence
    """
    if not condition:
        raise Wrong(diagnosed(f"{measured}, allowed {allowed}" if allowed else measured, [mistake]))


def expect(
    found: Any, expected: Any, what: str, mistakes: Mapping[str, Any] | None = None, tolerance: float = 0.0
) -> None:
    """Raise Wrong unless found equals expected: numbers, arrays, tensors, or tuples and lists of them.

    what: names the value
    mistakes: by sentence, what each usual mistake would have given; blanks at the sentence's end tell apart several
        forms of one mistake
    tolerance: largest absolute difference; from what a mistake gives, larger or smaller as that is
    """
    expect_each([Call(lambda: found, expected, what, mistakes or {}, tolerance)])


@dataclass(frozen=True)
class Call:
    """A call of what is graded; run makes it, and expected, what, mistakes and tolerance are as in `expect`.

    A mistake that isn't named here changes nothing in this call.
    """

    run: Callable[[], Any]
    expected: Any
    what: str
    mistakes: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 0.0

    def attempt(self) -> Any:
        """What it gives, or the exception that it raised."""
        try:
            return self.run()
        except Exception as error:
            return error

    def right(self, found: Any) -> bool:
        """Whether this is what the call must give."""
        return same(found, self.expected, self.tolerance)

    def fits(self, found: Any, mistake: str) -> bool:
        """Whether this is what the call gives by a mistake. An exception may be what any of them leads to."""
        if isinstance(found, Exception):
            return True
        if mistake not in self.mistakes:
            return self.right(found)
        wrong, size = self.mistakes[mistake], largest(self.expected)
        return same(found, wrong, self.tolerance * largest(wrong) / size if size else self.tolerance)


def expect_each(calls: Sequence[Call], beside: Sequence[Call] = ()) -> None:
    """Raise Wrong at the first call that is wrong, and name the mistake only if it explains what all of them gave.

    beside: calls that aren't judged here, but help to tell mistakes apart
    """
    fault, likely = "", {text for call in (*calls, *beside) for text in call.mistakes}
    for call in calls:
        found = call.run() if not fault else call.attempt()
        likely = {text for text in likely if call.fits(found, text)}
        if not fault and not call.right(found):
            fault = f"{call.what}: {difference(found, call.expected, call.tolerance)}"
    if fault:
        given = [(call, call.attempt()) for call in beside]
        raise Wrong(diagnosed(fault, [text for text in likely if all(call.fits(found, text) for call, found in given)]))


def diagnosed(text: str, likely: Iterable[str]) -> str:
    """A text, after the mistake that it looks like if it looks like one alone. likely: sentences."""
    sentences = {sentence.strip() for sentence in likely} - {""}
    return "\n".join([*sentences, text]) if len(sentences) == 1 else text


def same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Whether two values are equal in structure, shape and numbers."""
    if isinstance(b, (tuple, list)):
        return isinstance(a, (tuple, list)) and len(a) == len(b) and all(map(same, a, b, [tolerance] * len(b)))
    if a is None or b is None:
        return a is b
    try:
        left, right = _array(a), _array(b)
        return left.shape == right.shape and bool(np.all(np.abs(left - right) <= tolerance))
    except (TypeError, ValueError):
        return False


def largest(value: Any) -> float:
    """The largest absolute value of all numbers in a value, 0 if there are none."""
    if isinstance(value, (tuple, list)):
        return max(map(largest, value), default=0.0)
    return float(np.max(np.abs(_array(value)), initial=0.0))


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().float().numpy()
    return np.asarray(value).astype(np.float64)


def short(value: Any) -> str:
    """A value in a few words: numbers as they are, arrays by shape and first elements."""
    if value is None:
        return "None"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(short(v) for v in value[:4]) + (", …)" if len(value) > 4 else ")")
    try:
        array = _array(value)
    except (TypeError, ValueError):
        return repr(value)[:80]
    if array.ndim == 0:
        return _number(array)
    first = " ".join(f"{v:.4g}" for v in array.ravel()[:6])
    return f"[{first}{' …' if array.size > 6 else ''}] of shape {list(array.shape)}"


def difference(found: Any, expected: Any, tolerance: float = 0.0, index: str = "") -> str:
    """Where two values that aren't the same differ first: the index, what was found there, and what was expected.

    index: of both, inside of the values that are compared
    """
    at, listed = f"at {index} " if index else "", isinstance(expected, (tuple, list))
    if found is None or expected is None:
        return f"{at}found {short(found)}, expected {short(expected)}"
    if listed and isinstance(found, (tuple, list)):
        wrong = _first_wrong(found, expected, tolerance)
        if wrong is None:
            return at + _lengths(found, expected)
        return difference(found[wrong], expected[wrong], tolerance, f"{index}[{wrong}]")
    try:
        left, right = _array(found), _array(expected)
    except (TypeError, ValueError):
        return f"{at}found {short(found)}, expected {short(expected)}"
    if listed or left.ndim != right.ndim or (left.shape != right.shape and left.ndim > 1):
        return f"{at}found {_form(found)}, expected {_form(expected)}"
    return _arrays_difference(left, right, tolerance, index)


def _arrays_difference(found: np.ndarray, expected: np.ndarray, tolerance: float, index: str) -> str:
    """`difference` of arrays of one shape, or of one dimension."""
    length = min(len(found), len(expected)) if found.ndim else None
    differs = ~(np.abs(found[:length] - expected[:length]) <= tolerance) if found.ndim else np.array(True)
    if not differs.any():
        return f"at {index} " * bool(index) + _lengths(found, expected)
    place = np.unravel_index(int(np.argmax(differs)), differs.shape)
    index += f"[{', '.join(map(str, place))}]" if place else ""
    told = f"at {index} " * bool(index) + _apart(found[place], expected[place])
    if found.shape != expected.shape:
        return f"{told} ({len(found)} elements instead of {len(expected)})"
    return f"{told} ({differs.sum()} of {differs.size} differ)" if differs.size > 1 else told


def _first_wrong(found: Any, expected: Any, tolerance: float) -> int | None:
    """Where the first elements differ that both have; None if none does."""
    pairs = enumerate(zip(found, expected, strict=False))
    return next((i for i, (one, other) in pairs if not same(one, other, tolerance)), None)


def _lengths(found: Any, expected: Any) -> str:
    """How many elements there are and should be, and the first that only one side has."""
    beyond = min(len(found), len(expected))
    longer, what = (found, "is one too many") if len(found) > len(expected) else (expected, "is missing")
    return f"found {len(found)} elements, expected {len(expected)}: [{beyond}], {short(longer[beyond])}, {what}"


def _form(value: Any) -> str:
    """What kind of a value this is, where it is compared with one of another kind."""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    array = _array(value)
    return f"the number {_number(array)}" if array.ndim == 0 else f"the shape {list(array.shape)}"


def _apart(found: Any, expected: Any) -> str:
    """Two different numbers, in as many digits as tell them apart."""
    pairs = [(_number(found, digits), _number(expected, digits)) for digits in (6, 10, 17)]
    one, other = next((pair for pair in pairs if pair[0] != pair[1]), pairs[-1])
    return f"found {one}, expected {other}"


def _number(value: Any, digits: int = 6) -> str:
    return str(int(value)) if float(value).is_integer() else f"{float(value):.{digits}g}"
