"""The prompt that `run` is given: on the command line, in a file, or on standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

from flashlite.cli.options import show_progress
from flashlite.errors import FlashliteError
from flashlite.storage.strict_json import LARGEST

DEFAULT = "def add(a, b):"
END = "Ctrl-Z and Enter" if sys.platform == "win32" else "Ctrl-D"


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt's text, in which each line ends with one newline sign, as Python reads text.

    prompt: the text itself, or "-" for all of standard input; None is DEFAULT unless there is a file
    file: a file in UTF-8; a byte-order mark at its beginning is no part of the text

    Raises FlashliteError if both are given, or if the file or standard input can't be read, is empty or isn't text.
    """
    if prompt is not None and file is not None:
        raise FlashliteError("--prompt and --prompt-file both give a prompt: write one of them")
    if file is not None:
        return _read_file(file)
    return _read_input() if prompt == "-" else DEFAULT if prompt is None else prompt


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return _text(file, f"--prompt-file {path}")
    except OSError as error:
        reason = "it is a folder" if path.is_dir() else error.strerror
        raise FlashliteError(f"--prompt-file {path} cannot be read: {reason}") from None


def _read_input() -> str:
    """All of standard input; a line says what is waited for where a person types it."""
    if sys.stdin is None:
        raise FlashliteError("--prompt - reads standard input, which is closed: write --prompt TEXT")
    if sys.stdin.isatty():
        show_progress(f"type the prompt, and end it with {END} on a line of its own")
    return _text(sys.stdin.buffer, "standard input, which --prompt - reads,")


def _text(file: BinaryIO, name: str) -> str:
    content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise FlashliteError(f"{name} has more than {LARGEST // 2**20} MiB: no model has so many positions")
    if not content:
        raise FlashliteError(f'{name} is empty: to begin a new text, write --prompt ""')
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FlashliteError(f"{name} is not UTF-8 at byte {error.start}: save it as UTF-8") from None
    if "\0" in text:
        raise FlashliteError(f"{name} holds a zero byte, so it is not UTF-8 text: save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")
