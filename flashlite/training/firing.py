"""How many neurons of each layer are zero while a model trains, and a term of the loss that makes them more.

The term is the soft share of neurons that fire, times a weight for each layer. A layer's weight rises while more of its
neurons fire than is wanted and falls while fewer do, so that each layer finds the pressure that it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flashlite.families.family import Family
from flashlite.training.distributed import Group

SOFTNESS = 0.2  # width of the soft step, in standard deviations of what decides
SAMPLE = 4  # the term looks at every fourth token
STEP, MOST_EXCESS = 0.001, 3.0  # how fast weights move, and how far from its target a layer counts as at most


def soft_share(first: Tensor) -> Tensor:
    """The share of neurons that fire, as a number with a gradient: each counts by how far it is above its threshold.

    first: [..., tokens, ffn], what decides, which fires above 0
    """
    sample = first[..., ::SAMPLE, :].float()
    return torch.sigmoid(sample / (SOFTNESS * sample.detach().std() + 1e-3)).mean()


class Firing(nn.Module):
    """Hears what decides in each layer which neurons fire, whenever the model is called.

    weights: [layers], of the pressure
    """

    weights: Tensor

    def __init__(self, model: PreTrainedModel, family: Family, zeros: float = 0.0) -> None:
        """zeros: share of neurons that should be zero; at 0 nothing presses."""
        super().__init__()
        layers = model.get_submodule(family.layers)
        self._target = 1.0 - zeros
        self._first: list[Tensor] = [torch.empty(0)] * len(layers)
        self.register_buffer("weights", torch.zeros(len(layers)))
        for i, layer in enumerate(layers):
            layer.get_submodule(family.first).register_forward_hook(self._hear(i))

    def _hear(self, i: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, first: Tensor) -> None:
            self._first[i] = first

        return hook

    def zeros(self) -> Tensor:
        """The share of each layer's neurons that were zero in the last call: [layers]."""
        return torch.stack([(first <= 0).float().mean() for first in self._first])

    def pressure(self) -> Tensor:
        """The term of the loss for the last call. It has a gradient."""
        return (self.weights * torch.stack([soft_share(first) for first in self._first])).sum()

    @torch.no_grad()
    def adjust(self, group: Group) -> None:
        """Move the weights by what the last call showed, as the mean over all processes."""
        if self._target == 1.0:
            return
        firing = group.mean(1.0 - self.zeros())
        excess = ((firing - self._target) / self._target).clamp(max=MOST_EXCESS)
        self.weights.add_(STEP * excess).clamp_(0.0, 1.0)
