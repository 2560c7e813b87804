"""JSON objects in files that somebody else may have made.

What is read has a bound, and content that JSON readers understand in different ways is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

LARGEST = 16 * 2**20  # bytes; the index of the largest published model has a hundredth of it


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises OSError if the file can't be read, and ValueError as `parse_object` does."""
    return parse_object(read_bounded(path))


def read_bounded(path: Path) -> bytes:
    """The content of a file, or its first LARGEST + 1 bytes.

    Raises OSError if it can't be read, and ValueError if it is a pipe or a device, which might never end.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        return file.read(LARGEST + 1)


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object that these bytes spell.

    Raises ValueError, one line, if there are more than LARGEST bytes, if values are nested hundreds deep, if a key
    comes twice, if there is a NaN or an infinity, or if the bytes are not UTF-8.
    """
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes")
    try:
        parsed = json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError("it does not hold an object")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"it gives the key {name!r:.60} twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}, which is not a number in JSON")
