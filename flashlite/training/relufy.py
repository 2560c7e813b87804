"""Relufication: a model that was born with SiLU or GELU gets ReLU instead and is trained on until it speaks again.

Only ReLU leaves neurons at exactly zero, so only then can weights stay on flash. The training here goes beyond ReLU
alone: a term of the loss presses on neurons that fire (firing.py). Published models took 5 to 150 billion tokens.
(Paper: section 3.1 takes relufied models from Mirzadeh et al., "ReLU Strikes Back", arXiv 2310.04564)
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from flashlite.arguments import is_store
from flashlite.errors import CheckpointError
from flashlite.families.configured import empty_model
from flashlite.families.known import ACTIVATIONS
from flashlite.storage.atomic import new_folder
from flashlite.storage.checkpoint import Checkpoint
from flashlite.storage.safetensors_file import DTYPES
from flashlite.storage.side_files import CONFIG, copy_files, side_files
from flashlite.training.distributed import ALONE, Group
from flashlite.training.firing import Firing
from flashlite.training.train_model import Point, Recipe, Training, measure

RECORD = "training.json"


@dataclass(frozen=True)
class Relufied:
    """What became of a model, measured on held-out text.

    activation: which it was born with
    born: with that activation, untrained here; its zeros are none
    log: with ReLU; the first point is before training, the last one after
    """

    activation: str
    born: Point
    log: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Relufied:
        """What `to_json` gave, or what is in a relufied model's RECORD."""
        born, *log = (Point(**point | {"zeros": tuple(point["zeros"])}) for point in (content["born"], *content["log"]))
        return cls(content["activation"], born, tuple(log))


class Speaker(NamedTuple):
    """Where a checkpoint's tokenizer is, and the configuration that says which tokens there are."""

    path: Path
    config: PreTrainedConfig


def open_to_relufy(folder: Path) -> Checkpoint:
    """A checkpoint whose activation can be replaced. Raises CheckpointError, before any weights are read."""
    if is_store(folder):
        raise CheckpointError(f"{folder} is a store: name the checkpoint that it was packed from")
    checkpoint = Checkpoint(folder, any_activation=True)
    if checkpoint.config["model_type"] != checkpoint.family.model_type:
        raise CheckpointError(f"{folder} computes by code of its own, which is never run: only transformers' own train")
    if (name := activation_of(checkpoint)) not in ACT2FN:
        raise CheckpointError(f"{folder / CONFIG}: transformers has no activation {name!r:.40}")
    return checkpoint


def activation_of(checkpoint: Checkpoint) -> str:
    """The name of a checkpoint's activation."""
    return getattr(checkpoint.settings, checkpoint.family.activation)


def with_activation(checkpoint: Checkpoint, name: str) -> PreTrainedModel:
    """Transformers' own model on a checkpoint's weights in float32, with another activation."""
    settings = copy.deepcopy(checkpoint.settings)
    setattr(settings, checkpoint.family.activation, name)
    model = empty_model(settings, checkpoint.family)
    weights = {name: checkpoint.tensor(name).float() for name in checkpoint.names}
    model.load_state_dict(weights, strict=False, assign=True)  # it lacks only a head that is the embedding
    model.tie_weights()
    return model.eval()


def state_of(out: Path) -> Path:
    """The file that holds a training's state until its checkpoint `out` is complete."""
    return out.with_name(out.name + ".training.safetensors")


def relufy(
    checkpoint: Checkpoint, out: Path, stream: Tensor, held_out: Tensor, recipe: Recipe, group: Group = ALONE,
    tell: Callable[[int, float], None] = lambda step, loss: None,
    measured: Callable[[Point], None] = lambda point: None,
) -> Relufied:  # fmt: skip
    """Give a checkpoint ReLU, train it on, and write it to `out` as a checkpoint of its own dtype, with RECORD in it.

    An activation that streams already, such as squared ReLU, stays as it is.

    checkpoint: from open_to_relufy
    stream: [tokens], what is trained on
    held_out: [texts, length], what is measured on
    group: of processes that train together; the first one writes
    tell, measured: see Training.run

    A training that was broken off goes on where it was: its state is in a file beside `out` until `out` is complete.
    Raises FlashliteError if that file is of another training.
    """
    state = state_of(out)
    family, activation = checkpoint.family, activation_of(checkpoint)
    streams = activation in ACTIVATIONS  # then the model keeps it, and is only trained on
    model = with_activation(checkpoint, activation if streams else "relu")
    training = Training(model, Firing(model, family, recipe.zeros), stream, held_out, recipe, group, state)
    before = with_activation(checkpoint, activation)
    perplexity, zeros = measure(before, Firing(before, family), held_out, group)
    del before
    born = Point(0, perplexity, zeros if streams else (0.0,) * len(zeros), 0.0)
    training.run(tell, measured)
    result = Relufied(activation, born, tuple(training.log))
    if group.first:
        _write(model, checkpoint, out, result.to_json() | {"recipe": asdict(recipe), "tokens": _tokens(recipe)})
        state.unlink()
    group.wait()
    return result


def _tokens(recipe: Recipe) -> int:
    return recipe.steps * recipe.batch * recipe.length


def _write(model: PreTrainedModel, checkpoint: Checkpoint, out: Path, record: dict[str, Any]) -> None:
    with new_folder(out) as folder:
        model.to(DTYPES[checkpoint.own_dtype or "fp32"]).save_pretrained(folder)
        for path in folder.glob("*.safetensors"):  # which safetensors lets only its owner read, whatever the umask
            path.chmod((folder / CONFIG).stat().st_mode)
        copy_files(checkpoint.folder, folder, [name for name in side_files(checkpoint.folder) if name != CONFIG])
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
