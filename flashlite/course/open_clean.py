"""Opening a model by the engine's own code: `python -m flashlite.course.open_clean ARGUMENTS` takes and prints JSON.

A command that runs exercises in the engine's place has the model opened, and packed if need be, by such a process, so
that the code of exercises never writes what the engine's own code will read.
"""

from __future__ import annotations

import json
import subprocess
import sys

from flashlite.errors import FlashliteError


def open_clean(model: str, dtype: str | None, revision: str | None = None) -> str:
    """The folder of the store that a model's name means. Raises FlashliteError as `open_model` does."""
    arguments = json.dumps([model, dtype, revision])
    command = [sys.executable, "-m", "flashlite.course.open_clean", arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise FlashliteError(f"opening {model} ended with code {done.returncode}") from None
    if "error" in answer:
        raise FlashliteError(answer["error"])
    return answer["path"]


def main() -> None:
    """Open the model that the arguments name, as the text at the top says."""
    from flashlite.storage.find import open_model

    try:
        answer = {"path": str(open_model(*json.loads(sys.argv[1])).path)}
    except FlashliteError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
