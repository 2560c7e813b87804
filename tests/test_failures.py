"""What a student is told of a failure: the mistake first, one element that differs, in lines that fit a terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flashlite.cli.grades import failure_lines
from flashlite.course.checks import Wrong, difference, expect, require
from flashlite.course.grade import grade_one
from flashlite.course.manifest import Course

NAN, INF = float("nan"), float("inf")
DIFFERENT = {
    "numbers": (3, 4, "found 3, expected 4"),
    "numbers that six digits don't tell apart": (1.00000001, 1.0, "found 1.00000001, expected 1"),
    "numbers that ten digits don't tell apart": (
        0.1 + 0.2, 0.3, "found 0.30000000000000004, expected 0.29999999999999999"
    ),
    "not a number": (NAN, 1.0, "found nan, expected 1"),
    "nothing": (None, 4, "found None, expected 4"),
    "something for nothing": (4, None, "found 4, expected None"),
    "a word": ("four", 4, "found 'four', expected 4"),
    "an array that agrees at first": (
        np.arange(9), np.array([*range(7), 8, 9]), "at [7] found 7, expected 8 (2 of 9 differ)"
    ),
    "a table": (
        np.zeros((2, 3)), np.array([[0, 0, 0], [0, 0.5, 0]]), "at [1, 1] found 0, expected 0.5 (1 of 6 differ)"
    ),
    "a tensor": (torch.tensor([1.0, NAN]), torch.tensor([1.0, 2.0]), "at [1] found nan, expected 2 (1 of 2 differ)"),
    "infinities": (np.array([INF]), np.array([-INF]), "at [0] found inf, expected -inf"),
    "too few": (np.array([1, 2]), np.array([1, 2, 5]), "found 2 elements, expected 3: [2], 5, is missing"),
    "too many": (np.array([1, 2, 5]), np.array([1, 2]), "found 3 elements, expected 2: [2], 5, is one too many"),
    "none": (np.zeros(0), np.array([7]), "found 0 elements, expected 1: [0], 7, is missing"),
    "one left out": (np.array([1, 3]), np.array([1, 2, 3]), "at [1] found 3, expected 2 (2 elements instead of 3)"),
    "a list": ([1, 3], np.array([1, 2]), "at [1] found 3, expected 2 (1 of 2 differ)"),
    "another shape": (np.zeros((2, 3)), np.zeros((3, 2)), "found the shape [2, 3], expected the shape [3, 2]"),
    "a number for an array": (3, np.zeros(2), "found the number 3, expected the shape [2]"),
    "an array for a tuple": (np.zeros(2), (0, 1), "found the shape [2], expected a tuple of 2"),
    "a tuple": ((1, 2.5, 3), (1, 2.25, 4), "at [1] found 2.5, expected 2.25"),
    "a tuple that is too short": ((1,), (1, 2), "found 1 elements, expected 2: [1], 2, is missing"),
    "a tuple of arrays": (
        (np.zeros(2), np.zeros(3)), (np.zeros(2), np.array([0, 0, 1])), "at [1][2] found 0, expected 1 (1 of 3 differ)"
    ),
    "arrays in it too short": (
        (np.zeros(2), np.zeros(1)), (np.zeros(2), np.zeros(2)),
        "at [1] found 1 elements, expected 2: [1], 0, is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_one_differing_element_is_named(name: str) -> None:
    found, expected, told = DIFFERENT[name]
    assert difference(found, expected) == told
    with pytest.raises(Wrong) as raised:
        expect(found, expected, "rows")
    assert str(raised.value) == f"rows: {told}"


def test_what_is_within_the_tolerance_is_no_difference() -> None:
    assert difference(np.array([1.01, 3.0]), np.array([1.0, 2.0]), 0.1).startswith("at [1] found 3, expected 2 (1 of 2")


def test_the_mistake_comes_first() -> None:
    with pytest.raises(Wrong) as raised:
        expect(np.array([1, 2, 5]), np.array([1, 2, 4]), "rows", {"One was added.": np.array([1, 2, 5])})
    assert str(raised.value).splitlines() == ["One was added.", "rows: at [2] found 5, expected 4 (1 of 3 differ)"]
    with pytest.raises(Wrong) as raised:
        require(False, "read 9 MB", "3 MB", "Neurons in DRAM were read again.")
    assert str(raised.value).splitlines() == ["Neurons in DRAM were read again.", "read 9 MB, allowed 3 MB"]
    with pytest.raises(Wrong, match=r"\Aread 9 MB, allowed 3 MB\Z"):
        require(False, "read 9 MB", "3 MB")


@pytest.mark.parametrize("width", [20, 80, 100, 250])
def test_lines_fit_the_terminal_and_words_stay_whole(width: int) -> None:
    long = "k = 4, capacity 23, token 7: neurons to load: at [11] found 12, expected 15 (4 of 31 differ), so far"
    message = f"Neurons already in DRAM were read again.\n{long}"
    lines = failure_lines(message, width)
    assert all(len(line) <= max(40, min(width, 100)) for line in lines)
    assert all(line.startswith("    ") for line in lines)
    assert " ".join(" ".join(lines).split()) == message.replace("\n", " ")
    assert len(failure_lines(message, 250)) == 3


def test_a_line_of_code_and_its_error_have_lines_of_their_own(course: Course, tmp_path: Path) -> None:
    path = tmp_path / "ex07_speculative.py"
    solved = (course.root / "solutions/ex07_speculative.py").read_text()
    path.write_text(solved.replace("def expected_tokens", "missing_name\n\n\ndef expected_tokens"))
    found = grade_one(course, tmp_path, course.find("7.1"), seed=1)
    where, what = found.message.splitlines()
    assert found.status == "ERROR"
    assert where.startswith("ex07_speculative.py:")
    assert where.endswith(": missing_name")
    assert what == "NameError: name 'missing_name' is not defined"
