"""What flashlite raises: one clear line that says what is wrong and what to do."""

from __future__ import annotations

import errno
from pathlib import Path


class FlashliteError(Exception):
    """Any failure that flashlite foresees; the command line prints it as one line, without a traceback."""


class KilledError(FlashliteError):
    """The system killed a measuring process, as it does when memory runs out."""


class ReadError(FlashliteError, OSError):
    """A read from flash failed or ended short; the text names the file and the offset."""


class StoreError(FlashliteError):
    """A store is missing, incomplete, altered or of another format."""


class CheckpointError(FlashliteError):
    """A checkpoint is missing, incomplete or of a kind that cannot be streamed."""


class BudgetError(FlashliteError):
    """A DRAM budget is malformed or too small; the text names the smallest that works, and `smallest` has its bytes."""

    def __init__(self, text: str, smallest: int = 0) -> None:
        super().__init__(text)
        self.smallest = smallest


class PredictorError(FlashliteError):
    """A predictor is missing or made for another model."""


def check_limit_of_files(path: Path, error: OSError) -> None:
    """Raise ReadError if a file wasn't opened because too many are, which tells nothing about this one."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise ReadError(
            f"{path}: cannot be opened: {error.strerror}: close some, or allow more with `ulimit -n`"
        ) from None
