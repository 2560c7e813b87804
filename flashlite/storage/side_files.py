"""The small files of a checkpoint that its store takes along as they are: the configuration, the tokenizer's, settings.

Whatever transformers' AutoTokenizer makes of a checkpoint it then makes of the store.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from flashlite.storage.weights import INDEX, is_plain_name

ENDINGS = (".json", ".txt", ".jinja", ".model", ".spm", ".codes", ".tokenizer")  # of all that a tokenizer may read
TEMPLATES = "additional_chat_templates"
CONFIG, GENERATION = "config.json", "generation_config.json"


def is_side_file(name: str) -> bool:
    """Whether a store takes this file along. name: its path inside the checkpoint, with slashes."""
    folder, _, template = name.rpartition("/")
    if folder:
        return folder == TEMPLATES and is_plain_name(template) and template.endswith(".jinja")
    return is_plain_name(name) and name.endswith(ENDINGS) and not name.endswith(INDEX)


def side_files(folder: Path) -> list[str]:
    """The side files that a folder has, in order. Raises OSError."""
    found = [*folder.iterdir(), *(folder / TEMPLATES).glob("*.jinja")]
    names = (path.relative_to(folder).as_posix() for path in found if path.is_file())
    return sorted(filter(is_side_file, names))


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy those of the named files that a folder has. Raises OSError."""
    for name in names:
        if (source / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)
