"""One layer of transformers' own model, run with an FFN of one's own on what comes out of the layer before.

So whatever a family does around its FFN (attention beside it, fused or grouped queries, rotary positions, norms) is
what it does when the model runs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from flashlite.families.configured import empty_model, install
from flashlite.families.family import Family


class CalledFFN(nn.Module):
    """A function in an FFN's place. run: gets [tokens, d_model], and returns the same shape."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        """x: [tokens, d_model], the FFN's input."""
        return self.run(x)


class NoPositions(nn.Module):
    """An embedding of positions that adds nothing, because they are in the layer's input already."""

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Returns zero, whatever is asked for."""
        return torch.zeros(())


def run_layer(
    config: PreTrainedConfig, family: Family, number: int, weights: Callable[[str], Tensor], hidden: Tensor,
    ffn: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """The output of a layer: [sequences, tokens, d_model].

    config, family: of the whole model
    number: the layer's
    weights: a tensor of the model by its name
    hidden: [sequences, tokens, d_model], the layer's input
    ffn: takes [sequences * tokens, d_model], the FFN's input, and returns the FFN's output, of the same shape
    """
    alone = copy.deepcopy(config)
    alone.num_hidden_layers = 1
    body = empty_model(alone, family).eval().get_submodule(family.body)
    for name, module in body.named_children():
        if isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim == 1:  # the last norm
            setattr(body, name, nn.Identity())
    if family.positions is not None:
        setattr(body, family.positions, NoPositions())
        body.project_in = body.project_out = None
    layer = body.get_submodule(family.layers.removeprefix(family.body + "."))[0]
    install(family, layer, CalledFFN(ffn))
    prefix = family.layer.format(number)
    layer.load_state_dict({name: weights(prefix + name) for name in layer.state_dict()}, assign=True)
    return body(inputs_embeds=hidden, use_cache=False).last_hidden_state
