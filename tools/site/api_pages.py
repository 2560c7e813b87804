"""Pages of the reference: one for each module of the library, and one for each folder, which lists its modules."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

from repository_files import ROOT

PACKAGE = ROOT / "flashlite"
USED = (  # what `import flashlite` is for
    ("flashlite.load", "flashlite.engine.model.load"),
    ("flashlite.pack", "flashlite.storage.pack.pack"),
    ("flashlite.Store", "flashlite.storage.store.Store"),
    ("flashlite.FlashliteError", "flashlite.errors.FlashliteError"),
)
INTRODUCTION = """
All modules of the library, in the order in which they build on each other. A shape stands in brackets, such as
``[tokens, d_model]``; sizes are in bytes and times in milliseconds unless a name says otherwise. What users of the
library need is at hand in ``flashlite`` itself: {used}.
"""


def write(out: Path, house: dict[str, str]) -> None:
    """Write the pages. out: a folder; house: what the README says of each file and folder, by its path, in order."""
    order = list(house)
    folders = [path for path in folders_of(PACKAGE) if modules_of(path) or path == PACKAGE]
    folders.sort(key=lambda path: order.index(relative(path)) if relative(path) in order else len(order))
    for folder in folders:
        modules = sorted(modules_of(folder), key=lambda p: order.index(relative(p)) if relative(p) in order else 999)
        if folder == PACKAGE:
            inner = [name_of(path) for path in folders if path.parent == PACKAGE]
            place(out / "index.rst", top_page(modules, inner, house))
        else:
            inner = [name_of(path) for path in folders if path.parent == folder]
            place(out / f"{name_of(folder)}.rst", folder_page(folder, modules, inner, house))
        for module in modules:
            place(out / f"{name_of(module)}.rst", module_page(name_of(module)))


def folders_of(package: Path) -> list[Path]:
    """The folders that hold code."""
    return sorted({path.parent for path in package.rglob("*.py")})


def modules_of(folder: Path) -> list[Path]:
    """The modules in a folder."""
    return [path for path in folder.glob("*.py") if not path.name.startswith("__")]


def relative(path: Path) -> str:
    """A path as the README's house has it."""
    return path.relative_to(ROOT).as_posix()


def name_of(path: Path) -> str:
    """A module or folder as Python names it."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def place(path: Path, text: str) -> None:
    """Write a page unless it is there already, because Sphinx reads again what is newer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def heading(text: str) -> str:
    """A page's title."""
    return f"{text}\n{'=' * len(text)}\n"


def module_page(name: str) -> str:
    """A module's page."""
    return f"{heading(name)}\n.. automodule:: {name}\n   :members:\n"


def folder_page(folder: Path, modules: list[Path], inner: list[str], house: dict[str, str]) -> str:
    """A folder's page: what its own docstring says, and a list of what is in it."""
    names = [*map(name_of, modules), *inner]
    return f"{heading(name_of(folder))}\n{house.get(relative(folder), '')}\n\n{listed(names, house)}\n{toctree(names)}"


def top_page(modules: list[Path], inner: list[str], house: dict[str, str]) -> str:
    """The reference's first page."""
    used = ", ".join(f":py:obj:`{short} <{full}>`" for short, full in USED)
    names = [*map(name_of, modules), *inner]
    return f"{heading('API reference')}{INTRODUCTION.format(used=used)}\n{listed(names, house)}\n{toctree(names)}"


def listed(names: list[str], house: dict[str, str]) -> str:
    """Modules and folders, each with the README's line of it."""
    said = {path.removesuffix(".py").replace("/", "."): text for path, text in house.items()}
    return "".join(f":doc:`{name} <{name}>`\n    {literal(said.get(name, ''))}\n\n" for name in names)


def literal(text: str) -> str:
    """The README's line, in which nothing is markup."""
    return text.replace("\\", "\\\\").replace("`", "``").replace("*", "\\*") or "…"


def toctree(names: list[str]) -> str:
    """The hidden list from which Sphinx makes its menu: the last part of a name is enough there."""
    lines = "".join(f"   {name.rpartition('.')[2]} <{name}>\n" for name in names)
    return f".. toctree::\n   :hidden:\n\n{lines}"


@cache
def targets() -> dict[str, dict[str, str]]:
    """What a name in backticks means in each module: its own public names, else one that no other module has."""
    own = {name_of(path): defined(path) for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")}
    count = Counter(name for names in own.values() for name in names)
    unique = {name: f"{module}.{name}" for module, names in own.items() for name in names if count[name] == 1}
    return {module: unique | {name: f"{module}.{name}" for name in names} for module, names in own.items()}


def defined(path: Path) -> list[str]:
    """The public functions, classes and methods of a file that have a docstring: load, Window, Window.step."""
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and is_shown(node):
            found.append(node.name)
            if isinstance(node, ast.ClassDef):
                inner = [n for n in node.body if isinstance(n, ast.FunctionDef) and is_shown(n)]
                found += [f"{node.name}.{method.name}" for method in inner]
    return found


def is_shown(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether the reference has an entry of it."""
    return not node.name.startswith("_") and ast.get_docstring(node) is not None
