"""Modules that a student puts beside the exercise files, and imports there: `import my_helper`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

_folders: list[Path] = []  # that modules are imported from in this process


def let_import_from(folder: Path) -> None:
    """Let modules of a folder be imported: after all others, so that they take nobody's place."""
    folder = folder.resolve()
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        _folders.append(folder)


def forget_imports(folder: Path) -> None:
    """Have what was imported from a folder imported anew, because it may have been edited since."""
    importlib.invalidate_caches()
    for name, module in list(sys.modules.items()):
        if (file := getattr(module, "__file__", None)) and Path(file).is_relative_to(folder.resolve()):
            del sys.modules[name]


def hidden(error: BaseException) -> str:
    """A line for an error that comes from a helper whose name is another module's, which is what was imported; empty
    for any other error."""
    module = getattr(error, "obj", None) if isinstance(error, AttributeError) else None
    name = error.name if isinstance(error, ImportError) else getattr(module, "__name__", None)
    if not isinstance(name, str) or name not in sys.modules:
        return ""
    imported = Path(getattr(sys.modules[name], "__file__", None) or "built in").resolve()
    for folder in _folders:
        mine = next((path for path in (folder / f"{name}.py", folder / name) if path.exists()), None)
        if mine is not None and not imported.is_relative_to(folder):
            return f"{name} is another module's name too, and that one was imported: rename your {mine.name}"
    return ""
