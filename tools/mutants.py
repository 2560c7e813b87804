"""Every small mistake that a machine can make in a function: mutants(function) gives the function with each of them."""

from __future__ import annotations

import ast
import copy
import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from reordered import reordered

COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq, ast.LtE, ast.GtE), ast.NotEq: (ast.Eq, ast.Lt, ast.Gt), ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
OPERATORS: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div, ast.Add), ast.Div: (ast.Mult, ast.FloorDiv),
    ast.FloorDiv: (ast.Div,), ast.Mod: (ast.FloorDiv,), ast.Pow: (ast.Mult,), ast.BitOr: (ast.BitAnd, ast.BitXor),
    ast.BitAnd: (ast.BitOr,), ast.MatMult: (ast.Mult,),
}  # fmt: skip
ORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult)  # a op b is not b op a
COMMUTATIVE = {"min", "max", "not_equal", "equal", "union1d", "intersect1d", "zip"}
OTHERS = {
    "min": ["max"], "max": ["min"], "any": ["all"], "all": ["any"], "sum": ["mean"], "mean": ["sum"],
    "zeros": ["ones"], "ones": ["zeros"], "zeros_like": ["ones_like"], "popleft": ["pop"], "pop": ["popleft"],
    "append": ["appendleft", "extend"], "extend": ["append"], "relu": ["abs"], "relu_": ["abs"], "clamp": ["abs"],
    "union1d": ["intersect1d"], "intersect1d": ["union1d"], "setdiff1d": ["intersect1d"], "cat": ["stack"],
    "argmax": ["argmin"], "flatnonzero": ["nonzero"], "not_equal": ["equal"], "addmm": ["mm"],
    "int": ["round", "float"],
    "concatenate": ["stack"], "repeat": ["resize"], "sorted": ["list"], "squeeze": ["unsqueeze"],
}  # fmt: skip
WORDS = {"right": "left", "left": "right"}


@dataclass(frozen=True)
class Mutant:
    """A function with one mistake. change: its lines that differ, before → after."""

    change: str
    function: ast.FunctionDef


def mutants(function: ast.FunctionDef) -> list[Mutant]:
    """The function with each mistake, each once, in the order of its lines."""
    original, found = ast.unparse(function), dict[str, Mutant]()
    names = _names(function)
    for i, (_, _, _, node) in enumerate(_spots(function)):
        for other in _others(node, names):
            changed = copy.deepcopy(function)
            parent, field, place, _ = list(_spots(changed))[i]
            if place is None:
                setattr(parent, field, other)
            else:
                getattr(parent, field)[place : place + 1] = other if isinstance(other, list) else [other]
            _keep(changed, original, found)
    for change, changed in reordered(function):
        _keep(changed, original, found, change)
    return list(found.values())


def _keep(changed: ast.FunctionDef, original: str, found: dict[str, Mutant], change: str = "") -> None:
    """Note a changed function, unless it is the original or known, or no Python."""
    text = ast.unparse(ast.fix_missing_locations(changed))
    try:
        compile(text, "mutant", "exec")
    except SyntaxError:
        return
    if text != original and text not in found:
        lines = list(difflib.ndiff(original.splitlines(), text.splitlines()))
        before, after = ("; ".join(x[2:].strip() for x in lines if x.startswith(mark)) for mark in "-+")
        found[text] = Mutant(change or f"{before or 'nothing'} → {after or 'nothing'}", changed)


Spot = tuple[ast.AST, str, "int | None", ast.AST]


def _spots(function: ast.FunctionDef) -> list[Spot]:
    """Every node of the body and of the defaults, with where it hangs: parent, field, place in a list."""
    spots: list[Spot] = []
    begin = 1 if ast.get_docstring(function) is not None else 0
    spots += [spot for i in range(begin, len(function.body)) for spot in _below(function, "body", i, function.body[i])]
    for i, default in enumerate(function.args.defaults):
        spots += _below(function.args, "defaults", i, default)
    return spots


def _below(parent: ast.AST, field: str, place: int | None, node: ast.AST) -> Iterator[Spot]:
    yield parent, field, place, node
    if isinstance(node, ast.Raise):  # what an error says is no part of the answer
        return
    for name, value in ast.iter_fields(node):
        if isinstance(value, list):
            for i, child in enumerate(value):
                if isinstance(child, ast.AST):
                    yield from _below(node, name, i, child)
        elif isinstance(value, ast.AST) and name not in ("annotation", "returns"):
            yield from _below(node, name, None, value)


def _names(function: ast.FunctionDef) -> dict[str, list[str]]:
    """What may be mixed up with what: parameters and local variables, and the attributes of self that occur."""
    nodes = list(ast.walk(function))
    local = [argument.arg for argument in function.args.args if argument.arg != "self"]
    local += [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    own = [node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
           and id(node) not in called]  # fmt: skip
    return {"local": [name for name in dict.fromkeys(local) if name != "_"], "own": list(dict.fromkeys(own))}


def _others(node: ast.AST, names: dict[str, list[str]]) -> Iterator[ast.AST | list[ast.AST]]:
    """What may stand by mistake where a node stands."""
    if isinstance(node, ast.stmt):
        yield from _statements(node)
    elif isinstance(node, ast.Constant):
        yield from map(ast.Constant, _constants(node.value))
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names["local"]:
        yield from (ast.Name(name, node.ctx) for name in _next_two(names["local"], node.id))
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        if node.attr in names["own"] and ast.unparse(node.value) == "self":
            yield from (ast.Attribute(node.value, name, node.ctx) for name in _next_two(names["own"], node.attr))
        elif not isinstance(node.value, ast.Name) or node.value.id not in ("np", "torch", "F", "self"):
            yield node.value
    elif isinstance(node, ast.Slice):
        yield from _slices(node)
    elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        yield node.value
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, ast.comprehension):
        yield from (_with(node, iter=other) for other in _all_but_one(node.iter))
        yield from (_with(node, ifs=node.ifs[:i] + node.ifs[i + 1 :]) for i in range(len(node.ifs)))
    else:
        yield from _operators(node)


def _next_two(names: list[str], name: str) -> list[str]:
    """Two other names: those that follow in the list, which goes round."""
    place = names.index(name)
    return [names[(place + step) % len(names)] for step in (1, 2)]


def _operators(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            empty = ast.unparse(node.comparators[i]) == "0" and "len(" in ast.unparse(node.left)
            for other in COMPARISONS[type(operator)]:
                if empty and (type(operator), other) in ((ast.Eq, ast.LtE), (ast.NotEq, ast.Gt)):
                    continue  # a length is never below 0
                yield _with(node, ops=[*node.ops[:i], other(), *node.ops[i + 1 :]])
    elif isinstance(node, ast.BinOp):
        yield from (_with(node, op=other()) for other in OPERATORS.get(type(node.op), ()))
        yield from (node.left, node.right)
        if isinstance(node.op, ORDERED):
            yield _with(node, left=node.right, right=node.left)
    elif isinstance(node, ast.BoolOp):
        yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        yield from (_with(node, values=node.values[:i] + node.values[i + 1 :]) for i in range(len(node.values)))
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse, _with(node, body=node.orelse, orelse=node.body))


def _constants(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return list(dict.fromkeys(n for n in (value + 1, value - 1, -value, 0, 2 * value) if n != value))
    if isinstance(value, float):
        return list(dict.fromkeys(x for x in (0.0, 1.0, -value, 10 * value, value / 10) if x != value))
    return [WORDS[value]] if isinstance(value, str) and value in WORDS else []


def _slices(node: ast.Slice) -> Iterator[ast.AST]:
    for side in ("lower", "upper", "step"):
        bound = getattr(node, side)
        if bound is not None:
            yield _with(node, **{side: None})
            for operator in () if isinstance(bound, ast.Constant) else (ast.Add(), ast.Sub()):
                yield _with(node, **{side: ast.BinOp(bound, operator, ast.Constant(1))})
    if node.lower is None:
        yield _with(node, lower=ast.Constant(1))
    if node.upper is None:
        yield _with(node, upper=ast.UnaryOp(ast.USub(), ast.Constant(1)))


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    args, name = node.args, getattr(node.func, "attr", getattr(node.func, "id", ""))
    for other in OTHERS.get(name, []):
        field = "attr" if isinstance(node.func, ast.Attribute) else "id"
        yield _with(node, func=_with(node.func, **{field: other}))
    yield from (_with(node, args=args[:i] + args[i + 1 :]) for i in range(len(args)))
    if name not in COMMUTATIVE:
        yield from (_with(node, args=[*args[:i], args[i + 1], args[i], *args[i + 2 :]]) for i in range(len(args) - 1))
    yield from (_with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :]) for i in range(len(node.keywords)))
    if args and not isinstance(args[0], ast.Starred):
        yield args[0]  # the call is left out
    if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) not in ("np", "torch", "F", "self"):
        yield node.func.value
    if name == "range":
        yield from _all_but_one(node)
    if name in ("min", "max"):
        yield from args[1:]


def _all_but_one(iterable: ast.expr) -> list[ast.expr]:
    """What is iterated over without its first, and without its last."""
    ends = (ast.Slice(ast.Constant(1), None), ast.Slice(None, ast.UnaryOp(ast.USub(), ast.Constant(1))))
    listed = ast.Call(ast.Name("list", ast.Load()), [iterable], [])
    return [ast.Subscript(listed, end, ast.Load()) for end in ends]


def _statements(node: ast.stmt) -> Iterator[ast.AST | list[ast.AST]]:
    yield ast.Pass()
    if isinstance(node, ast.AugAssign):
        target = copy.deepcopy(node.target)
        yield ast.Assign([target], node.value)
        yield from (_with(node, op=other()) for other in OPERATORS.get(type(node.op), ()))
    elif isinstance(node, (ast.If, ast.While)):
        yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
        yield list(node.body)  # always
        if node.orelse:
            yield list(node.orelse)
        if isinstance(node, ast.While):
            yield ast.If(node.test, node.body, [])  # once at most
    elif isinstance(node, ast.For):
        yield from (_with(node, iter=other) for other in _all_but_one(node.iter))
        yield _with(node, body=[*node.body, ast.Break()])
    elif isinstance(node, (ast.Continue, ast.Break)):
        yield ast.Break() if isinstance(node, ast.Continue) else ast.Continue()


def _with(node: ast.AST, **fields: object) -> ast.AST:
    """A copy of a node with other fields."""
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed
