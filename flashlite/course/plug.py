"""Running the engine on somebody else's files: a file takes the place of a module, loaded by its path.

    python -m flashlite.course.plug SPEC MODULE ARGUMENTS...     # run a module with files plugged in

SPEC is JSON, {"flashlite.engine.window": {"file": ".../ex03_window.py", "counted": {"Window.step": "3.2"}}}, a `Plug`
for each module.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import json
import re
import runpy
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType

from flashlite.course import counting
from flashlite.course.classroom.beside import forget_imports, let_import_from
from flashlite.course.generate import find_function
from flashlite.course.impl.choose import Plug, choose, describe, functions_of
from flashlite.course.manifest import find_course, place
from flashlite.course.open_clean import open_clean
from flashlite.course.source import parse_source
from flashlite.errors import FlashliteError

_installed: dict[str, Plug] = {}  # in this process


def install(plugs: dict[str, Plug]) -> None:
    """Let later imports of these modules load their files. Raises FlashliteError if one was imported already."""
    late = [name for name in plugs if name in sys.modules]
    if late:
        raise FlashliteError(f"{', '.join(late)} was imported before the exercises were plugged in")
    sys.meta_path.insert(0, _Finder(plugs))
    _installed.update(plugs)
    for plug in plugs.values():
        let_import_from(Path(plug.file).parent)
    counting.leave_counts()


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, plugs: dict[str, Plug]) -> None:
        self._plugs = plugs

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if (plug := self._plugs.get(name)) is None:
            return None
        return importlib.util.spec_from_file_location(name, plug.file, loader=_Loader(name, plug))


class _Loader(importlib.abc.Loader):
    """Loads the file of a plug in the place of the engine's module of this name."""

    def __init__(self, name: str, plug: Plug) -> None:
        self._name, self._plug = name, plug

    def exec_module(self, module: ModuleType) -> None:
        tree = parse_source(Path(self._plug.file))
        if self._plug.from_reference:
            reference = Path(__file__).parents[2].joinpath(*self._name.split(".")).with_suffix(".py")
            graft(tree, ast.parse(reference.read_text(encoding="utf-8")), self._plug.from_reference)
        exec(compile(tree, self._plug.file, "exec"), module.__dict__)
        counting.count(module, self._plug.counted)


def load(plug: Plug, replaced: str = "") -> ModuleType:
    """The file as a module of its own, beside the engine's; what it imports from its folder is imported anew.

    replaced: the engine's module, by its name, if the file takes functions of it
    """
    name, folder = Path(plug.file).stem, Path(plug.file).parent
    let_import_from(folder)
    forget_imports(folder)
    spec = importlib.util.spec_from_file_location(name, plug.file, loader=_Loader(replaced or name, plug))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def graft(tree: ast.Module, reference: ast.Module, names: list[str]) -> None:
    """Replace functions of a module by the reference's; one that is missing is added."""
    for name in names:
        function = find_function(reference, name)
        owner: ast.AST = tree
        for part in name.split(".")[:-1]:
            owner = next(
                (n for n in getattr(owner, "body", []) if isinstance(n, ast.ClassDef) and n.name == part), tree
            )
        body = getattr(owner, "body", [])
        same = [i for i, node in enumerate(body) if isinstance(node, ast.FunctionDef) and node.name == function.name]
        for i in same:
            body[i] = function
        if not same:
            body.append(function)


@dataclass(frozen=True)
class Plugged:
    """What `--impl` put in the place of the engine's code.

    plugs: by module; none where the engine's own code runs
    lines: what was said of each file
    model, revision: what the command is to open: the model that it was given, or the store that this means
    calls: counts them, unless whoever started this process does
    """

    plugs: dict[str, Plug]
    lines: list[str] = field(default_factory=list)
    model: str = ""
    revision: str | None = None
    calls: counting.Calls | None = None

    @property
    def names(self) -> str:
        """The plugged files, as the manifest of a store that they packed tells them; empty if there are none."""
        return ", ".join(Path(plug.file).name for plug in self.plugs.values())

    def command(self, module: str) -> list[str]:
        """The command that runs a module with the same files plugged in."""
        return command(self.plugs, module)

    def total(self) -> dict[str, int]:
        """How often each exercise was called so far, by its id."""
        calls = self.calls.total() if self.calls else {}
        return {exercise: calls[exercise] for exercise in sorted(calls, key=place)}

    def show_calls(self) -> None:
        """Print how often each exercise was called so far."""
        if self.calls:
            print("\n".join(counting.table(functions_of(self.plugs), self.total())))


def plug_in(impl: str, model: str = "", dtype: str | None = None, revision: str | None = None) -> Plugged:
    """Let exercise files take the places of engine modules, before any of these is imported, and say so.

    impl: as `sources` takes it
    model, dtype, revision: what the command is about to open, if anything; the engine's own code packs it first

    Raises FlashliteError as `choose` and `open_clean` do.
    """
    if _installed:  # whoever started this process chose them
        return Plugged(_installed, model=open_clean(model, dtype, revision) if model else "")
    if impl == "ref":
        return Plugged({}, model=model, revision=revision)
    course = find_course()
    plugs = choose(course, impl)
    lines = describe(course, plugs)
    print("\n".join([f"impl={impl}", *lines]))
    store = open_clean(model, dtype, revision) if model else ""
    install(plugs)
    return Plugged(plugs, lines, store, calls=counting.Calls())


def command(plugs: dict[str, Plug], module: str) -> list[str]:
    """The command that runs a module with files plugged in."""
    if not plugs:
        return [sys.executable, "-m", module]
    spec = json.dumps({name: asdict(plug) for name, plug in plugs.items()})
    return [sys.executable, "-m", "flashlite.course.plug", spec, module]


def own_line(error: BaseException) -> str:
    """Where in an exercise file an exception comes from, with the line itself; empty if it isn't from one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}: {(error.text or '').strip()}  → "
    own = re.compile(r"(ex\d\d|contest)_")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if own.match(Path(f.filename).name)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}  → " if frames else ""


def main() -> None:
    """Plug files in and run a module, as the text at the top says."""
    spec, module = sys.argv[1:3]
    install({name: Plug(**plug) for name, plug in json.loads(spec).items()})
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    from flashlite.course import plug

    plug.main()  # of the module that others import, which remembers what is plugged in
