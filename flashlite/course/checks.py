"""How exercise tests say what is wrong: what was found, what was expected, and which mistake that looks like."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SEED = "FLASHLITE_SEED"  # set anew for each grading run


def rng() -> np.random.Generator:
    """Where a test's inputs come from: another seed in each grading run, always the same in a plain test run."""
    return np.random.default_rng(int(os.environ.get(SEED, "0")))


class Wrong(AssertionError):
    """An answer that is wrong; the text names both values and the likely mistake."""


def require(condition: bool, measured: str, allowed: str, mistake: str = "") -> None:
    """Raise Wrong unless the condition holds. measured, allowed: with units; mistake: one sentence."""
    if not condition:
        raise Wrong(f"{measured}, allowed {allowed}" + (f"\n{mistake}" if mistake else ""))


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
            fault = f"{call.what}: found {short(found)}, expected {short(call.expected)}"
    if fault:
        given = [(call, call.attempt()) for call in beside]
        raise Wrong(diagnosed(fault, [text for text in likely if all(call.fits(found, text) for call, found in given)]))


def diagnosed(text: str, likely: Iterable[str]) -> str:
    """A text with the mistake that it looks like, if it looks like one alone. likely: sentences."""
    sentences = {sentence.strip() for sentence in likely} - {""}
    return "\n".join([text, *sentences]) if len(sentences) == 1 else text


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
        return str(int(array)) if float(array).is_integer() else f"{float(array):.6g}"
    first = " ".join(f"{v:.4g}" for v in array.ravel()[:6])
    return f"[{first}{' …' if array.size > 6 else ''}] of shape {list(array.shape)}"
