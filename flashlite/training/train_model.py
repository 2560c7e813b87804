"""Training a causal language model on text: alone or in a group, and broken off and gone on with at any time.

Weights and gradients are float32, products bf16. What each step does follows from the recipe's seed and the step's
number alone, so a training that was broken off ends as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from flashlite.errors import FlashliteError, one_line
from flashlite.storage.atomic import new_file
from flashlite.training.distributed import Group
from flashlite.training.firing import Firing

LARGEST_LOSS = 700.0  # nats; a perplexity above it is no float


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    steps: how many batches
    batch: texts in a batch, those of all processes together
    length: tokens in a text
    lr: learning rate; it rises over the first tenth of the steps, but at most 100, and falls over the last `decay`
    decay: share of the steps
    zeros: share of neurons that should be zero, see Firing
    seed: of the batches
    every: steps between two measurements on held-out text; the training can go on from each of them
    """

    steps: int = 1000
    batch: int = 16
    length: int = 512
    lr: float = 3e-4
    decay: float = 0.5
    zeros: float = 0.9
    seed: int = 0
    every: int = 100

    def rate(self, step: int) -> float:
        """The learning rate at a step, counted from 0."""
        warmup = min(100, max(1, self.steps // 10))
        return self.lr * min(1.0, (step + 1) / warmup, max(0.01, (1 - step / self.steps) / self.decay))


@dataclass(frozen=True)
class Point:
    """One measurement.

    step: how many steps were done
    perplexity: on held-out text
    zeros: share of zeros in each layer there
    seconds: since the training began, without what lay between two parts of it
    """

    step: int
    perplexity: float
    zeros: tuple[float, ...]
    seconds: float


class _Objective(nn.Module):
    """A model with its loss, in one forward pass."""

    def __init__(self, model: PreTrainedModel, firing: Firing) -> None:
        super().__init__()
        self.model, self.firing = model, firing

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The loss in nats a token, and with the pressure added. ids: [texts, length + 1]."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(ids[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        return loss, loss + self.firing.pressure()


@torch.no_grad()
def measure(model: PreTrainedModel, firing: Firing, held_out: Tensor, group: Group) -> tuple[float, tuple[float, ...]]:
    """Perplexity and the share of zeros in each layer, in float32.

    held_out: [texts, length], which processes share among each other
    """
    mine, seen = held_out[group.rank :: group.size], []
    for text in mine.split(1):
        logits = model(text, use_cache=False).logits[:, :-1].float()
        loss = F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        seen.append(torch.cat([loss[None], firing.zeros()]))
    share = len(mine) * group.size / len(held_out)  # processes may have one text more or less
    loss, *zeros = group.mean(share * torch.stack(seen).mean(0)).tolist()
    return math.exp(loss) if loss < LARGEST_LOSS else math.inf, tuple(zeros)


class Training:
    """A model's training.

    log: a point for each measurement so far; the first one is before the first step
    """

    def __init__(
        self, model: PreTrainedModel, firing: Firing, stream: Tensor, held_out: Tensor, recipe: Recipe, group: Group,
        state: Path,
    ) -> None:  # fmt: skip
        """stream: [tokens], what is trained on
        held_out: [texts, length], what is measured on
        state: the file from which the training goes on, if there is one

        Raises FlashliteError if there is too little text, if processes can't share a batch equally, or if the file is
        of another training.
        """
        _check(len(stream), len(held_out), recipe, group)
        self.model, self.firing, self.recipe, self.group = model.eval(), firing, recipe, group  # eval: no dropout
        self.log: list[Point] = []
        self._stream, self._held_out, self._state = stream, held_out, state
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.01)
        self._objective: nn.Module = _Objective(model, firing)
        self._settings = asdict(recipe) | {"data": _digest(model.state_dict(), stream, held_out)}
        self._before = 0.0  # seconds of earlier parts
        if state.exists():
            self._go_on()
        if group.size > 1:
            self._objective = DistributedDataParallel(self._objective)

    def run(self, tell: Callable[[int, float], None], measured: Callable[[Point], None]) -> None:
        """Train to the end.

        tell: is told of each step's number, from 1, and its loss
        measured: of each measurement
        """
        self._began = time.monotonic()
        if not self.log:
            self._measure(0, measured)
        for step in range(self.log[-1].step, self.recipe.steps):
            tell(step + 1, self._step(step))
            if (step + 1) % self.recipe.every == 0 or step + 1 == self.recipe.steps:
                self._measure(step + 1, measured)

    @torch.enable_grad()
    def _step(self, step: int) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.rate(step)
        loss, total = self._objective(self._batch(step))
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.firing.adjust(self.group)
        return float(self.group.mean(loss.detach()))

    def _batch(self, step: int) -> Tensor:
        """This process's texts of a step's batch: [texts, length + 1]."""
        rng, length = np.random.default_rng((self.recipe.seed, step)), self.recipe.length
        begins = rng.integers(0, len(self._stream) - length, self.recipe.batch)[self.group.rank :: self.group.size]
        return torch.stack([self._stream[begin : begin + length + 1] for begin in begins]).long()

    def _measure(self, step: int, measured: Callable[[Point], None]) -> None:
        perplexity, zeros = measure(self.model, self.firing, self._held_out, self.group)
        if not math.isfinite(perplexity):
            raise FlashliteError(f"the training has diverged by step {step}: choose a lower learning rate, --lr")
        self.log.append(Point(step, perplexity, zeros, self._before + time.monotonic() - self._began))
        measured(self.log[-1])
        if self.group.first:
            self._save()

    def _tensors(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        tensors = {f"model.{name}": p for name, p in self.model.named_parameters()} | {"weights": self.firing.weights}
        names = [name for name, _ in self.model.named_parameters()]
        for i, parts in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{part}.{names[i]}": tensor for part, tensor in parts.items()}
        return tensors

    def _save(self) -> None:
        said = {"settings": json.dumps(self._settings), "log": json.dumps([asdict(point) for point in self.log])}
        tensors = {name: tensor.detach().contiguous() for name, tensor in self._tensors().items()}
        with one_line(self._state, FlashliteError, "cannot be written"):
            self._state.parent.mkdir(parents=True, exist_ok=True)
        with one_line(self._state, FlashliteError, "cannot be written"), new_file(self._state) as unfinished:
            save_file(tensors, unfinished, said)

    @torch.no_grad()
    def _go_on(self) -> None:
        """Take up the training where the file left it. Raises FlashliteError if it is another training's."""
        try:
            with one_line(self._state, FlashliteError), safe_open(self._state, "pt") as file:
                said = file.metadata()
                if json.loads(said["settings"]) != self._settings:
                    raise FlashliteError(
                        f"{self._state} is of a training with other settings, text or weights: repeat those, or remove "
                        "the file to begin anew"
                    )
                self.log = [Point(**point | {"zeros": tuple(point["zeros"])}) for point in json.loads(said["log"])]
                self._take(file)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise FlashliteError(f"{self._state} is damaged: remove it to begin anew ({error})") from None
        self._before = self.log[-1].seconds

    def _take(self, file: Any) -> None:
        """Copy a state's tensors to their places."""
        held: dict[int, dict[str, Tensor]] = {}
        self.firing.weights.copy_(file.get_tensor("weights"))
        for i, (name, parameter) in enumerate(self.model.named_parameters()):
            parameter.copy_(file.get_tensor(f"model.{name}"))
            if self.log[-1].step:
                parts = ("step", "exp_avg", "exp_avg_sq")
                held[i] = {part: file.get_tensor(f"optimizer.{part}.{name}") for part in parts}
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": held})


def _check(tokens: int, texts: int, recipe: Recipe, group: Group) -> None:
    if tokens <= recipe.length:
        raise FlashliteError(f"{tokens} tokens are too few to train on texts of {recipe.length}: give more text")
    if recipe.batch % group.size:
        raise FlashliteError(f"{group.size} processes can't share batches of {recipe.batch}: choose a multiple")
    if texts < group.size:
        raise FlashliteError(f"{texts} held-out texts are too few for {group.size} processes: give more text")


def _digest(*parts: Tensor | dict[str, Tensor]) -> str:
    """A SHA-256 of tensors."""
    digest = hashlib.sha256()
    for part in parts:
        for tensor in part.values() if isinstance(part, dict) else [part]:
            digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
