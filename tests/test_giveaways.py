"""What a student reads before the solution doesn't hold it: hints, contracts, and the rest of an exercise's file."""

from __future__ import annotations

import ast
import builtins
import copy
import re

import pytest
from answers import right_answers
from conftest import ROOT

from flashlite.course.generate import find_function, generated_files
from flashlite.course.manifest import Exercise, read_course

COURSE = read_course(ROOT)
ANSWERS, FILES = right_answers(COURSE), generated_files(COURSE)
EXERCISES = pytest.mark.parametrize("exercise", COURSE.exercises, ids=lambda exercise: exercise.id)
GRADED = pytest.mark.parametrize(
    "exercise", [e for e in COURSE.exercises if e.points], ids=lambda exercise: exercise.id
)
OPERATIONS = (ast.Call, ast.BinOp, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Subscript, ast.IfExp, ast.comprehension)
STATEMENTS = (ast.Assign, ast.AugAssign, ast.Expr, ast.Return, ast.If, ast.While)
UNKNOWN = "any_name"
CODE = r"[\w.]+\([^()]+\)|[\w.]+\[[^\]]*:[^\]]*\]"  # a call of something with arguments, or a slice


class Anonymous(ast.NodeTransformer):
    """Takes the names away from parameters and local variables, so that what is done remains."""

    def __init__(self, function: ast.FunctionDef) -> None:
        nodes = list(ast.walk(function))
        self.names = {node.arg for node in nodes if isinstance(node, ast.arg)} - {"self"}
        self.names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(UNKNOWN, node.ctx) if node.id in self.names else node


def fragments(function: ast.FunctionDef) -> dict[str, ast.AST]:
    """All statements and expressions of a function's body, anonymous, by their text."""
    begin = 1 if ast.get_docstring(function) is not None else 0
    body = [Anonymous(function).visit(copy.deepcopy(node)) for node in function.body[begin:]]
    nodes = [node for part in body for node in ast.walk(part) if isinstance(node, (ast.expr, *STATEMENTS))]
    return {ast.unparse(node): node for node in nodes}


def size(node: ast.AST) -> int:
    """How many operations it has."""
    return sum(isinstance(part, OPERATIONS) for part in ast.walk(node))


def names_something(node: ast.AST) -> bool:
    """Whether it calls a function or uses a field that one has to think of."""
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} - {UNKNOWN, "self", "np", "torch"}
    return bool(names - set(dir(builtins))) or any(isinstance(part, ast.Attribute) for part in ast.walk(node))


def answers(exercise: str) -> list[ast.FunctionDef]:
    """The right answers: the engine's, and those of tests/alternatives.py."""
    return [case.function for case in ANSWERS if case.exercise.id == exercise]


def pieces(exercise: str, least: int) -> set[str]:
    """What right answers consist of, as patterns for a text without blanks: pieces of so many operations."""
    found = {
        t: n for function in answers(exercise) for t, n in fragments(function).items() if not isinstance(n, ast.If)
    }
    large = {text for text, node in found.items() if size(node) >= least and (size(node) > 1 or names_something(node))}
    return {rf"(?<!\w){re.escape(squeezed(text)).replace(UNKNOWN, WORD)}" for text in large}


WORD = r"[A-Za-z_]\w*"


def squeezed(text: str) -> str:
    """Code and prose without what may differ in writing."""
    return re.sub(r"[\s`]", "", text)


def contract(exercise: Exercise) -> str:
    """What a stub says of its exercise."""
    return "\n".join([exercise.task, exercise.example, exercise.provided])


@EXERCISES
def test_no_hint_is_the_answer(exercise: Exercise) -> None:
    stub = find_function(ast.parse(FILES[f"exercises/{exercise.file}"]), exercise.qualname)
    known = squeezed(contract(exercise) + (ast.get_docstring(stub) or ""))
    for hint in exercise.hints:
        given = [piece for piece in pieces(exercise.id, 1) if re.search(piece, squeezed(hint))]
        assert [piece for piece in given if not re.search(piece, known)] == [], hint
        assert [code for code in re.findall(CODE, hint) if squeezed(code) not in known] == [], hint


@GRADED
def test_no_contract_is_the_answer(exercise: Exercise) -> None:
    assert [piece for piece in pieces(exercise.id, 3) if re.search(piece, squeezed(contract(exercise)))] == []


@GRADED
def test_an_exercises_file_does_not_show_how_it_is_solved(exercise: Exercise) -> None:
    tree = ast.parse(FILES[f"exercises/{exercise.file}"])
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        shown = fragments(function)
        for answer in answers(exercise.id):
            own = {
                text: node for text, node in fragments(answer).items() if isinstance(node, (*OPERATIONS, *STATEMENTS))
            }
            same = [text for text in own if text in shown]
            large = [text for text in same if size(own[text]) >= (2 if isinstance(own[text], STATEMENTS) else 4)]
            assert large == [], f"{function.name} shows a part of {exercise.id}"
            assert len(same) < len(own) / 2, f"{function.name} shows half of {exercise.id}"
