"""What there is to say of a model family: what transformers calls its parts, and how its FFN sits in a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

EMBEDDINGS = "embeddings"  # the group of all weights that belong to no layer


def grouped_heads(config: Any) -> int:
    """How many heads' keys and values are cached: those that queries share, where a configuration has such."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


@dataclass(frozen=True)
class Family:
    """A model family by transformers' names, which are those of modules.

    model_type: what transformers calls the family whose classes build it
    first: in a layer, the matrix [ffn, d_model] that decides which neurons fire
    down: in a layer, the matrix [d_model, ffn] of the FFN's second projection
    second: in a layer, the matrix [ffn, d_model] with whose product a gated neuron's value is multiplied, or None
    layers: the list of layers, inside the module that runs them
    embedding: the token embedding, inside that module
    positions: the embedding of positions there; None where positions are computed
    ffn: the parts of a layer that are its FFN, from the first that is called to the last
    flattens: whether a layer gives its FFN [sequences * tokens, d_model], and not [sequences, tokens, d_model]
    neurons, activation: what the configuration calls the number of neurons, and their activation
    early_norm: says of a configuration which norm in a layer gives the FFN's input before attention runs, or None
    stock: a published config.json as one of transformers' own family
    cached_heads: says of a configuration how many heads' keys and values transformers caches
    """

    model_type: str
    first: str
    down: str
    second: str | None = None
    layers: str = "model.layers"
    embedding: str = "embed_tokens"
    positions: str | None = None
    ffn: tuple[str, ...] = ("mlp",)
    flattens: bool = False
    neurons: str = "intermediate_size"
    activation: str = "hidden_act"
    early_norm: Callable[[Any], str | None] = lambda config: None
    stock: Callable[[dict[str, Any]], dict[str, Any]] = dict
    cached_heads: Callable[[Any], int] = grouped_heads

    @property
    def head(self) -> str:
        """The name of the head's weights, [vocab_size, width of the embedding]."""
        return "lm_head.weight"

    @property
    def body(self) -> str:
        """The module that runs the layers."""
        return self.layers.rpartition(".")[0]

    @property
    def embedding_weight(self) -> str:
        """The name of the token embedding's weights, of the head's shape."""
        return f"{self.body}.{self.embedding}.weight"

    @property
    def layer(self) -> str:
        """What the names of a layer's weights begin with, with `{}` for its number, as in all names below."""
        return self.layers + ".{}."

    @property
    def matrices(self) -> tuple[str, ...]:
        """The names of the matrices that stay on flash, in the order of a neuron's record."""
        return self._names(".weight", self.first, self.down, self.second)

    @property
    def biases(self) -> tuple[str, ...]:
        """The names of the biases of `first`, and of `second` where neurons are gated: [ffn] each."""
        return self._names(".bias", self.first, self.second)

    @property
    def down_bias(self) -> str:
        """The name of the down projection's bias: [d_model]."""
        return self._names(".bias", self.down)[0]

    def _names(self, kind: str, *modules: str | None) -> tuple[str, ...]:
        return tuple(self.layer + module + kind for module in modules if module)

    def canonical(self, name: str) -> str:
        """A checkpoint's name for a weight as transformers spells it today.

        Old files leave out the first module, and some have it once too often; transformers reads both.
        """
        first = self.layers.partition(".")[0] + "."
        bare = name.removeprefix(first)
        return bare if bare.startswith("lm_head.") else first + bare

    def streamed(self, layers: int) -> set[str]:
        """The names of the weights that stay on flash."""
        return {pattern.format(i) for i in range(layers) for pattern in self.matrices}

    def group_of(self, name: str) -> str:
        """The group that a resident weight is read with: `layers.<i>`, or EMBEDDINGS if it belongs to no layer."""
        begin = self.layers + "."
        return f"layers.{name.removeprefix(begin).partition('.')[0]}" if name.startswith(begin) else EMBEDDINGS
