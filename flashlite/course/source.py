"""Python files that others saved, read as Python itself reads them, whatever their editor or git did to them."""

from __future__ import annotations

import ast
import hashlib
import tokenize
from pathlib import Path

from flashlite.errors import FlashliteError


def read_source(path: Path) -> str:
    """The text of a Python file, its lines ended by newlines alone.

    A byte-order mark and a coding line count as they do for Python. Raises FlashliteError, one line, if Python can't
    read the file's encoding either, such as UTF-16.
    """
    try:
        with tokenize.open(path) as file:
            text = file.read()
    except (SyntaxError, UnicodeError, LookupError):
        text = "\0"
    if "\0" in text:
        raise FlashliteError(f"{path.name} isn't saved as text that Python can read: save it as UTF-8")
    return text


def parse_source(path: Path) -> ast.Module:
    """The syntax tree of a Python file, as an import has it, which doesn't mind comments that aren't UTF-8.

    Raises SyntaxError, or FlashliteError as `read_source` does.
    """
    try:
        return ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError):
        read_source(path)  # which says so if the encoding is to blame
        raise


def digest(text: str) -> str:
    """SHA-256 of a text, the same whatever ends its lines, and whatever blanks stand at these ends."""
    lines = [line.rstrip() for line in text.splitlines()]
    return hashlib.sha256(("\n".join(lines).rstrip() + "\n").encode()).hexdigest()
