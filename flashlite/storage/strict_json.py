"""JSON objects out of files that others may have made: read within bounds, and only where all readers would agree."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

LARGEST = 16 * 2**20  # bytes; the index of the largest published model has a hundredth of it


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises OSError if it can't be read, and ValueError as `parse_object` does."""
    return parse_object(read_bounded(path))


def read_bounded(path: Path) -> bytes:
    """What is in a file, or its first LARGEST + 1 bytes. Raises OSError if it can't be read, ValueError if it is none:
    a pipe or a device might never end."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    with path.open("rb") as file:
        return file.read(LARGEST + 1)


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object that bytes spell.

    Raises ValueError, one line, if they are more than LARGEST, nest hundreds of values, give a key twice, hold NaN or
    an infinity, or are not UTF-8.
    """
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes")
    try:
        parsed = json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError("it holds no object")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"it gives the key {name!r:.60} twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}, which is no number of JSON's")
