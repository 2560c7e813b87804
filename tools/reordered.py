"""Statements in the wrong order: reordered(function) gives the function with each two neighbours exchanged."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

ENDS = (ast.Return, ast.Raise, ast.Break, ast.Continue)


def reordered(function: ast.FunctionDef) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The function with two statements that follow one another in the other order, and how to call this."""
    for i, node in enumerate(ast.walk(function)):
        for field in ("body", "orelse"):
            block = getattr(node, field, None)
            begin = 1 if node is function and ast.get_docstring(function) is not None else 0
            for first in range(begin, len(block) - 1 if isinstance(block, list) else 0):
                if _independent(block[first], block[first + 1]):
                    continue
                changed = copy.deepcopy(function)
                other = getattr(list(ast.walk(changed))[i], field)
                other[first], other[first + 1] = other[first + 1], other[first]
                yield f"{_line(other[first])} before {_line(other[first + 1])}", changed


def _independent(one: ast.stmt, other: ast.stmt) -> bool:
    """Whether the order of two statements clearly doesn't matter."""
    if isinstance(one, ast.FunctionDef) or isinstance(other, ast.FunctionDef):
        return True  # what it needs is there when it is called
    if any(isinstance(node, ENDS) or "self" in ast.unparse(node) for node in (*ast.walk(one), *ast.walk(other))):
        return False
    sums = [_sums(one), _sums(other)]
    if all(sums) and not sums[0] & _read(other) and not sums[1] & _read(one):
        return True
    names = [_names(one), _names(other)]
    if all(isinstance(node, ast.Assign) for node in (one, other)):
        return not (_names(one, ast.Store) & names[1] or _names(other, ast.Store) & names[0])
    return not names[0] & names[1]


def _sums(node: ast.stmt) -> set[str]:
    """The variables that a statement, with those inside it, does nothing but add to; none if it does more."""
    simple = [n for n in ast.walk(node) if isinstance(n, ast.stmt) and not isinstance(n, (ast.For, ast.If))]
    added = all(isinstance(n, ast.AugAssign) and isinstance(n.op, ast.Add) for n in simple)
    return {ast.unparse(n.target) for n in simple if isinstance(n, ast.AugAssign)} if added else set()


def _read(node: ast.AST) -> set[str]:
    return _names(node, ast.Load)


def _names(node: ast.AST, context: type[ast.expr_context] = ast.expr_context) -> set[str]:
    """The names in a statement, or only those that it reads or stores, but for those of modules."""
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}
    return found - {"np", "torch", "F"}


def _line(node: ast.AST) -> str:
    """The first line of a statement."""
    return ast.unparse(node).splitlines()[0]
