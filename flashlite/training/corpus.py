"""Text that every student already has: the Python source of the standard library and of the course's own packages.

One file in a hundred, chosen by a hash of its name, is held out: no model or predictor of the course was trained on it,
and every perplexity in the course is measured on it.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PACKAGES = (
    *("numpy", "torch", "transformers", "matplotlib", "sympy", "networkx", "mpmath", "fontTools"),
    *("PIL", "huggingface_hub", "pygments", "pip", "setuptools", "rich"),
)
SKIPPED_FOLDERS = {"__pycache__", "site-packages", "lib2to3", "idlelib"}
MIN_FILE_BYTES, MAX_FILE_BYTES = 400, 400_000
MIN_CHARACTERS, MAX_LINE = 300, 1000


def is_held_out(path: Path) -> bool:
    """Whether a file belongs to the held-out hundredth: md5 of its base name is 0 modulo 100."""
    return int(hashlib.md5(path.name.encode()).hexdigest(), 16) % 100 == 0


def source_files() -> Iterator[Path]:
    """Every Python file of the corpus that is installed here, in a fixed order."""
    paths = sysconfig.get_paths()
    roots = [Path(paths["stdlib"]), *(Path(paths["purelib"]) / package for package in PACKAGES)]
    return (path for root in roots for path in _python_files(root))


def _python_files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        wanted = SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts)
        if wanted and MIN_FILE_BYTES < path.stat().st_size < MAX_FILE_BYTES:
            yield path


def read_source(path: Path) -> str | None:
    """A file's text without its leading comments (licence headers), or None if it is too short or holds data."""
    lines = path.read_text(encoding="utf-8", errors="ignore").split("\n")
    start = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    text = "\n".join(lines[start:]).strip() + "\n"
    return None if len(text) < MIN_CHARACTERS or max(map(len, text.split("\n"))) > MAX_LINE else text


def corpus(held_out: bool) -> Iterator[str]:
    """The texts of one side of the split, without duplicates; files are read only as far as texts are taken."""
    seen: set[bytes] = set()
    for path in source_files():
        text = read_source(path)
        digest = hashlib.md5((text or "").encode()).digest()
        if text is None or digest in seen:
            continue
        seen.add(digest)  # counted before the split, so a copy under another name never crosses it
        if is_held_out(path) == held_out:
            yield text
