"""The errors that flashlite raises: each is one clear line that says what is wrong and what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
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


@contextlib.contextmanager
def one_line(
    path: Path, kind: type[FlashliteError], failure: str = "cannot be read", advice: str = ""
) -> Iterator[None]:
    """Turn an OSError of the block into one line of this kind of error: the path, the failure, the reason, the advice.

    Raises ReadError instead if too many files are open, because such an error says nothing about this file.
    """
    try:
        yield
    except FlashliteError:  # a ReadError is an OSError too
        raise
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            limit = f"{error.strerror}: close some, or allow more with `ulimit -n`"
            raise ReadError(f"{path} cannot be opened: {limit}") from error
        raise kind(f"{path} {failure}: {error.strerror or error}{advice}") from error
