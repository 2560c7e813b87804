"""What the repository promises about itself."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashlite.training.corpus import is_held_out, read_source

ROOT = Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "flashlite").rglob("*.py"))


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
