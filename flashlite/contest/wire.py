"""Messages between the referee and the process in which an entry runs: a line of JSON, then arrays as plain bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

KINDS: dict[str, np.dtype] = {"i8": np.dtype("<i8"), "i1": np.dtype("i1")}
LONGEST = 2**16  # bytes of a message's first line
LARGEST = 2**20  # numbers of one array


class Broken(Exception):
    """The other side has ended, or sent what isn't a message."""


def send(pipe: BinaryIO, facts: Mapping[str, Any], **arrays: np.ndarray) -> None:
    """Send facts and [n] arrays, of int64 or int8. Raises OSError if nobody listens."""
    shapes = {name: ("i1" if array.dtype == np.int8 else "i8", len(array)) for name, array in arrays.items()}
    pipe.write(json.dumps({"facts": facts, "arrays": shapes}).encode() + b"\n")
    for name, (kind, _) in shapes.items():
        pipe.write(arrays[name].astype(KINDS[kind]).tobytes())
    pipe.flush()


def receive(pipe: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The next message's facts and arrays. Raises Broken."""
    line = pipe.readline(LONGEST)
    try:
        message = json.loads(line)
        facts, shapes = dict(message["facts"]), dict(message["arrays"])
        return facts, {name: _array(pipe, KINDS[kind], length) for name, (kind, length) in shapes.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Broken(str(error)) from None


def _array(pipe: BinaryIO, dtype: np.dtype, length: int) -> np.ndarray:
    if type(length) is not int or not 0 <= length <= LARGEST:
        raise ValueError("an array's length is not understood")
    content = pipe.read(length * dtype.itemsize)
    if len(content) != length * dtype.itemsize:
        raise ValueError("an array ends early")
    return np.frombuffer(content, dtype).copy()
