"""Arguments and places that can't work, refused before torch is imported and before anything is measured."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flashlite.arguments import BUNDLED_NAMES, LAST_STAGE, LAYOUTS, MANIFEST, POLICY_STAGES, is_store, parse_budget
from flashlite.course.impl.choose import POLICY, choose, functions_of
from flashlite.course.manifest import find_course
from flashlite.errors import BudgetError, FlashliteError

if TYPE_CHECKING:
    from flashlite.course.plug import Plugged
    from flashlite.storage.store import Store

HUB_ID = r"[\w-][\w.-]*(/[\w-][\w.-]*)?"
CONFIG = "config.json"  # the file that makes a folder a checkpoint


def check_model(model: str) -> None:
    """Raise FlashliteError unless this is opt-mini, a store, a checkpoint folder, or could be a model of the hub."""
    if os.path.isfile(model):
        raise FlashliteError(f"{model} is a file: name the folder that holds {CONFIG} and the weights")
    if os.path.isdir(model) and not is_store(model) and not os.path.exists(Path(model) / CONFIG):
        raise FlashliteError(f"{model} is neither a store nor a checkpoint: it has no {MANIFEST} and no {CONFIG}")
    if not os.path.isdir(model) and not re.fullmatch(HUB_ID, model):
        raise FlashliteError(
            f"{model!r} is not a folder and not a hub id: write a folder, opt-mini or facebook/opt-125m"
        )


def check_store(store: Path) -> None:
    """Raise FlashliteError unless a folder is a store."""
    if is_store(store):
        return
    model = str(store) in BUNDLED_NAMES or (store / CONFIG).exists()
    arguments = f"{store} OUT" if model else f"MODEL {store}"
    raise FlashliteError(f"{store} is not a store: make one with `flashlite pack {arguments}`")


def check_store_name(store: str) -> None:
    """Raise FlashliteError unless this is a store's folder or could be the hub id of a store."""
    if os.path.exists(store) or not _has_owner(store):
        check_store(Path(store))


def check_repository(name: str) -> None:
    """Raise FlashliteError unless this could be a repository of the hub, with its owner's name."""
    if not _has_owner(name):
        raise FlashliteError(f"{name!r} is not the hub id of a repository: write OWNER/NAME")


def _has_owner(name: str) -> bool:
    return "/" in name and re.fullmatch(HUB_ID, name) is not None


def check_budget(budget: str) -> None:
    """Raise FlashliteError unless a text is a budget, whatever the model."""
    if parse_budget(budget, weight_bytes=2**40) == 0:
        raise BudgetError(f'a budget of {budget!r} holds nothing: write bytes, "4GiB" or "50%"')


def check_layouts(layouts: str) -> None:
    """Raise FlashliteError unless a text names layouts, with commas between them."""
    if not set(layouts.split(",")) <= set(LAYOUTS):
        raise FlashliteError(f"layout {layouts!r} is not known: write bundled, split, or bundled,split")


def check_texts(files: Iterable[Path]) -> None:
    """Raise FlashliteError unless each of these files can be read."""
    for file in files:
        try:
            with file.open("rb"):
                pass
        except OSError as error:
            raise FlashliteError(f"{file} cannot be read: {error.strerror}") from None


def check_new_folder(folder: Path, replace: bool, advice: str) -> None:
    """Raise FlashliteError unless a store can be written to this folder. replace: whether it may take another store's
    place; advice: what to do if it may not."""
    if os.path.lexists(folder) and not replace:
        raise FlashliteError(f"{folder} exists already: {advice}")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not is_store(folder)):
        raise FlashliteError(f"{folder} is not a store, so it isn't replaced: choose another name")
    check_writable(folder, str(folder))


def check_file(file: Path, name: str) -> None:
    """Raise FlashliteError unless a file can be written here. name: what the message calls it."""
    try:
        if file.is_dir():
            raise FlashliteError(f"{name} is a folder: name a file in it")
        if file.exists() and not file.is_file() and os.access(file, os.W_OK):
            return  # a device or a pipe, such as /dev/stdout
    except OSError as error:
        raise FlashliteError(f"{name} cannot be written: {error.strerror}") from None
    check_writable(file, name)


def check_writable(place: Path, name: str) -> None:
    """Raise FlashliteError unless something can be written beside `place`, in folders that need not exist yet. This is
    found out by writing, and nothing is left of it."""
    try:
        folder = next(parent for parent in place.absolute().parents if os.path.lexists(parent))
        if not folder.is_dir():
            raise FlashliteError(f"{name} cannot be written: {folder} is not a folder")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FlashliteError(f"{name} cannot be written: {error.strerror}") from None


def check_figure(plot: Path, name: str) -> None:
    """Raise FlashliteError unless matplotlib can draw a file of this name."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ModuleNotFoundError:
        raise FlashliteError(f"{name} needs matplotlib: pip install matplotlib") from None
    kinds = FigureCanvasBase.get_supported_filetypes()
    if plot.suffix.lower().removeprefix(".") not in kinds:
        raise FlashliteError(f"{name} has no ending that matplotlib knows: name a file .png, .svg or .pdf")


def check_exercises(store: Store, plugged: Plugged) -> None:
    """Raise FlashliteError unless what is plugged in can run a model. The neurons that exercises multiply are OPT's, in
    floating-point numbers; only those of an elective are about other families, or about int8."""
    kind = store.config.model_type
    if not plugged.plugs or (kind == "opt" and not store.quantized):
        return
    course, run = find_course(), functions_of(plugged.plugs)
    slots = {e.slot for e in course.exercises if e.id in run and not course.is_elective(e.id)}
    if slots:
        raise FlashliteError(
            f"the exercises {', '.join(sorted(slots))} run OPT in fp32, bf16 or fp16, and {store.path} is "
            f"{'in int8' if kind == 'opt' else f'of type {kind}'}: leave them out of --impl"
        )


def check_policy(impl: str, stages: Iterable[int]) -> None:
    """Raise FlashliteError if `--impl` names a policy for the contest and one of the stages can't run it."""
    if LAST_STAGE in stages and impl != "ref" and POLICY in choose(find_course(), impl):
        raise FlashliteError(POLICY_STAGES)


def check_stages(
    store: Store, stages: Sequence[int], dram_budget: int | str, predictor: str = "trained", window: int | str = 5,
    device: str = "cpu",
) -> None:  # fmt: skip
    """Raise FlashliteError if a stage can't be loaded so; of budgets, for the stage that needs most. No weights are
    read, but the store is open, so torch is imported."""
    from flashlite.engine.device.place import place_of
    from flashlite.engine.model import choose_stage, plan

    place = place_of(device)
    too_small: list[BudgetError] = []
    for stage in stages:
        try:
            plan(store, choose_stage(store, stage, window, dram_budget, place), dram_budget, predictor, place)
        except BudgetError as error:
            too_small.append(error)
    if too_small:
        raise max(too_small, key=lambda error: error.smallest)
