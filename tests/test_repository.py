"""What the repository promises about itself."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from flashlite.training.corpus import is_held_out, read_source

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flashlite"
LIBRARY = sorted(PACKAGE.rglob("*.py"))
FLOORS = (
    "",
    "drive",
    "families",
    "storage",
    "engine",
    "training",
    "bench",
    "plots",
    "course",
    "contest",
    "cli",
)  # from the ground
ENTRANCES = {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}  # on no floor: they only lead in


def test_readme_table_is_that_of_results() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/update_readme.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_published_results_are_exact_and_within_the_budget() -> None:
    result = json.loads((ROOT / "results/bench-opt-mini-fp32.json").read_text())
    for stage in result["stages"]:
        assert stage["tokens_equal"]
        assert stage["max_logit_error"] < 1e-3
        assert stage["agreement"] >= 0.95
        assert stage["dram_bytes"] <= result["budget_bytes"]
        assert stage["peak_rss_bytes"] <= result["budget_bytes"] + result["base"]["total"]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.name)
def test_files_are_short_and_public_names_documented(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 270
    for node in public_names(ast.parse(text)):
        assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


def public_names(scope: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public classes, functions and methods, but for methods that a protocol or torch documents."""
    for node in scope.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if not (isinstance(scope, ast.ClassDef) and node.name in {"submit", "forward"}):
                yield node
            if isinstance(node, ast.ClassDef):
                yield from public_names(node)


def test_held_out_rule(tmp_path: Path) -> None:
    held_out = [name for name in (f"module_{i}.py" for i in range(2000)) if is_held_out(Path("any") / name)]
    assert 5 <= len(held_out) <= 40
    source = tmp_path / "a.py"
    source.write_text("# licence\n# text\n\nimport os\n" + "x = 1\n" * 100)
    assert (read_source(source) or "").startswith("import os")
    source.write_text("x = 1\n")
    assert read_source(source) is None


def imports_of(path: Path, only_at_the_top: bool = False) -> Iterator[str]:
    """The modules of flashlite that a file imports: `engine.window`, `errors`; at its top, or anywhere in it."""
    tree = ast.parse(path.read_text())
    for node in tree.body if only_at_the_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("flashlite.") for alias in node.names if "flashlite." in alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            module = (node.module or "").split(".")
            if module[0] == "flashlite":
                for alias in node.names:  # what is imported from a folder is one of its modules, or in its __init__
                    inner = [*module[1:], alias.name]
                    file = PACKAGE.joinpath(*inner)
                    yield ".".join(inner if file.with_suffix(".py").is_file() or file.is_dir() else module[1:])


def name_of(path: Path) -> str:
    """A file as `imports_of` names it."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def floor_of(module: str) -> int:
    """The floor of a module of flashlite."""
    return FLOORS.index(module.split(".")[0] if (PACKAGE / module.split(".")[0]).is_dir() else "")


@pytest.mark.parametrize("path", [path for path in LIBRARY if path not in ENTRANCES], ids=name_of)
def test_imports_lead_down(path: Path) -> None:
    upward = [module for module in imports_of(path) if floor_of(module) > floor_of(name_of(path))]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {name_of(path): path for path in LIBRARY}
    arrows = {name: set(imports_of(path, only_at_the_top=True)) - {""} for name, path in modules.items()}
    assert set().union(*arrows.values()) <= modules.keys()
    TopologicalSorter(arrows).prepare()  # raises CycleError, which names them


def test_upward_imports_and_circles_would_be_found(tmp_path: Path) -> None:
    source = tmp_path / "low.py"
    source.write_text("def f():\n    from flashlite.cli import main\n    import flashlite.bench.ladder\n")
    assert list(imports_of(source)) == ["cli.main", "bench.ladder"]
    assert [floor_of(module) for module in imports_of(source)] == [FLOORS.index("cli"), FLOORS.index("bench")]
    assert floor_of("errors") < floor_of("drive.flash") < floor_of("engine.window")
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_every_folder_can_be_overseen() -> None:
    folders = {path.parent for path in LIBRARY}
    assert {folder.relative_to(PACKAGE).parts[0] for folder in folders if folder != PACKAGE} == set(FLOORS) - {""}
    for folder in folders:
        files = [path for path in folder.iterdir() if path.is_file() and path.name != "__init__.py"]
        assert len(files) <= (7 if folder == PACKAGE else 15), f"{folder} holds {len(files)} files"
