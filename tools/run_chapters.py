"""Run the chapters' notebooks and keep what they print and draw: python tools/run_chapters.py [NN ...].

Each runs from its own folder in a fresh kernel. A notebook that fails stays as it was.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

CHAPTERS = Path(__file__).parent.parent / "chapters"
TIMEOUT = 180  # seconds for one cell, on machines slower than the 90 that a whole notebook may take here


def notebooks(numbers: list[str]) -> list[Path]:
    """The notebooks of these chapters, all if none is named, in order."""
    return [path for path in sorted(CHAPTERS.glob("[0-9]*.ipynb")) if not numbers or path.name[:2] in numbers]


def run(path: Path, folder: Path = CHAPTERS) -> nbformat.NotebookNode:
    """Execute a notebook in a folder and return it with its outputs. Raises nbclient's CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )  # fmt: skip
    client.execute()
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


def main() -> None:
    for path in notebooks(sys.argv[1:]):
        began = time.perf_counter()
        executed = run(path)
        unfinished = path.with_suffix(".writing")
        nbformat.write(executed, unfinished)
        unfinished.replace(path)
        print(f"{path.name}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
