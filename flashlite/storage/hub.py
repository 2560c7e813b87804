"""Which folder a model's name means: a local one, a bundled model's, or a download from the hub."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flashlite.arguments import BUNDLED_NAMES, LAYOUTS, MANIFEST, WEIGHT_FILES, is_store
from flashlite.errors import CheckpointError
from flashlite.storage.side_files import CONFIG, is_side_file
from flashlite.storage.store import CHECKSUMS, PREDICTOR, RESIDENT, ffn_file
from flashlite.storage.weights import INDEX, choose_weights, read_json, shards_in

log = logging.getLogger("flashlite")

BUNDLED = {name: Path(__file__).parents[1] / name.replace("-", "_") for name in BUNDLED_NAMES}
BUNDLED_MODEL = BUNDLED["opt-mini"]
OF_STORES = {RESIDENT, CHECKSUMS, PREDICTOR, *map(ffn_file, LAYOUTS)}  # and side files, to which the manifest belongs
PATIENCE = 10  # seconds for the hub's answer


def find_checkpoint(model: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint: a local folder, a bundled model's name, or a hub id, which is downloaded if need be.

    revision: of a hub model, a branch, a tag or a commit; None is its main branch.

    A local folder comes first, as in transformers, whatever its name is. Raises CheckpointError if there is no such
    folder and the hub doesn't give the model.
    """
    return local_folder(model, revision) or find_snapshot(str(model), revision).folder()


def local_folder(model: str | Path, revision: str | None = None) -> Path | None:
    """The folder of a model that is at hand, or None if its name can only be a hub id.

    Raises CheckpointError if the name is a file's, or if a revision is named, which only hub models have.
    """
    is_folder = os.path.isdir(model)
    if not is_folder and str(model) not in BUNDLED:
        if os.path.exists(model):
            raise CheckpointError(f"{model} is a file: name the folder that holds config.json and the weights")
        return None
    if revision is not None:
        raise CheckpointError(f"only hub models have revisions, and {model} is not one: leave out {revision!r}")
    say_which(model)
    return Path(model) if is_folder else BUNDLED[str(model)]


def say_which(model: str | Path) -> None:
    """Log a line if a name that is usually a bundled model's is that of a folder here."""
    if model in BUNDLED and os.path.isdir(model):
        log.warning("flashlite: %s is the folder of that name here, not the model that comes with flashlite", model)


def origin_of(folder: Path) -> dict[str, str]:
    """The hub id, as `model`, and the `commit` of a folder in the hub's cache; nothing of any other folder."""
    place = re.search(r"/models--([^/]+)/snapshots/([0-9a-f]{40})$", folder.absolute().as_posix())
    return {"model": place[1].replace("--", "/"), "commit": place[2]} if place else {}


def model_name(model: str | Path) -> str:
    """What a model is called in tables: the last part of its path or hub id."""
    return os.path.basename(os.path.abspath(model))


@dataclass(frozen=True)
class Snapshot:
    """A hub model as of one commit.

    model, revision: as they were asked for.
    commit: its SHA-1.
    names: of all its files, as the hub tells; empty if the hub can't be reached.
    cached: the folder in the hub's cache that is used then.
    """

    model: str
    revision: str | None
    commit: str
    names: frozenset[str] = frozenset()
    cached: Path | None = None

    @property
    def holds_store(self) -> bool:
        """Whether it is a store, which is packed already, and not a checkpoint."""
        if self.cached:
            return is_store(self.cached)
        return MANIFEST in self.names and self.names.isdisjoint(WEIGHT_FILES)

    def folder(self) -> Path:
        """Its folder, with those files in it that flashlite needs. Raises CheckpointError if a download fails."""
        if self.cached:
            return self.cached
        if self.holds_store:
            return self._download(name for name in self.names if name in OF_STORES or is_side_file(name))
        small = {name for name in self.names if is_side_file(name)}
        folder = self._download(small | {name for name in self.names if name in WEIGHT_FILES and name.endswith(INDEX)})
        weights = choose_weights(folder, read_json(folder / CONFIG), self.names)
        return self._download(shards_in(folder / weights) if weights.endswith(INDEX) else [weights])

    def _download(self, names: Iterable[str]) -> Path:
        from huggingface_hub import snapshot_download

        try:
            patterns = [glob.escape(name) for name in sorted(names)]
            return Path(snapshot_download(self.model, revision=self.revision, allow_patterns=patterns))
        except Exception as error:  # the hub's client raises many kinds
            raise _unavailable(self.model, self.revision, error) from error


def find_snapshot(model: str, revision: str | None = None) -> Snapshot:
    """What the hub has of a model now, or what its cache has, with a line, if the hub can't be reached.

    Raises CheckpointError if neither has it.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(model, revision=revision, timeout=PATIENCE)
        return Snapshot(model, revision, str(info.sha), frozenset(file.rfilename for file in info.siblings or ()))
    except Exception as error:  # the hub's client raises many kinds
        if (cached := _cached(model, revision)) is None:
            raise _unavailable(model, revision, error) from error
        reason, commit = type(error).__name__, cached.name
        log.warning("flashlite: %s as it was downloaded before, commit %s: the hub fails (%s)", model, commit, reason)
        return Snapshot(model, revision, commit, cached=cached)


def _cached(model: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download

    try:  # which says that a folder is incomplete if anything is missing that is asked for
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=[CONFIG], local_files_only=True))
    except Exception:
        return None
    return folder if is_store(folder) or any((folder / name).exists() for name in WEIGHT_FILES) else None


def _unavailable(model: str, revision: str | None, error: Exception) -> CheckpointError:
    named = f" at revision {revision!r}" if revision else ""
    return CheckpointError(
        f"{model} is not a local folder, and downloading it{named} from the hub failed ({type(error).__name__}): "
        f"check the name{', the revision' if revision else ''} and the network"
    )
