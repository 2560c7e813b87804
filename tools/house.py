"""The README's house: a tree with one line a module, grouped in folders. tools/update_readme.py writes it.

A line that is there is kept, so that it can say what a reader looks for. A module that is new gets the first sentence
of its docstring, after its neighbours; the line of a module that is gone goes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

WIDTH = 26  # of the names, indented by two for each folder
LONGEST = 95  # characters of a line's text, if it comes from a docstring


def house(block: str, root: Path) -> str:
    """The tree as it must be, from the one that the README has. root: the repository's folder."""
    known = dict(entries(block))
    package = [*lines_of(root / "flashlite", root, known)]
    beside = [line for line in block.splitlines() if line and not line.startswith((" ", "flashlite/"))]
    return "\n".join(["flashlite/", *package, *beside])


def entries(block: str) -> Iterator[tuple[str, str]]:
    """What a tree has: each path from the repository's folder, without a slash at its end, and the text beside it."""
    folders: list[str] = []
    for line in filter(None, block.splitlines()):
        name, _, text = line.strip().partition(" ")
        folders = [*folders[: (len(line) - len(line.lstrip())) // 2], name]
        yield "".join(folders).rstrip("/"), text.strip()


def lines_of(folder: Path, root: Path, known: dict[str, str], depth: int = 1) -> Iterator[str]:
    """The lines of a folder's modules, then of its folders: first those that are known, in their order."""
    order = list(known)
    for path in sorted(members(folder, known, root), key=lambda p: (p.is_dir(), _place(order, p, root), p.name)):
        name, told = path.name + "/" * path.is_dir(), known.get(str(path.relative_to(root)))
        yield f"{'  ' * depth + name:{WIDTH}}{told or first_sentence(path)}".rstrip()
        if path.is_dir():
            yield from lines_of(path, root, known, depth + 1)


def members(folder: Path, known: dict[str, str], root: Path) -> list[Path]:
    """The modules and packages of a folder, and its other folders that have a line already."""
    found = [path for path in folder.glob("*.py") if not path.name.endswith("__.py")]
    found += [path for path in folder.iterdir() if (path / "__init__.py").is_file()]
    found += [path for path in folder.iterdir() if str(path.relative_to(root)) in known and path not in found]
    return found


def _place(order: list[str], path: Path, root: Path) -> int:
    name = str(path.relative_to(root))
    return order.index(name) if name in order else len(order)


def first_sentence(path: Path) -> str:
    """What a module's or a package's docstring begins with, shortened at a colon or a comma if it is long."""
    file = path / "__init__.py" if path.is_dir() else path
    text = " ".join((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())
    text = text.split(". ")[0].rstrip(".")
    for mark in (": ", "; ", ", "):
        if len(text) > LONGEST and mark in text:
            text = text[: text.rindex(mark, 0, max(LONGEST, text.index(mark) + len(mark)))]
    return text[:1].lower() + text[1:] if text[1:2].islower() or text.startswith("A ") else text
