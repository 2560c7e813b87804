"""What a model family calls its weights."""

from __future__ import annotations

from dataclasses import dataclass

EMBEDDINGS = "embeddings"  # the group of all weights that belong to no layer


@dataclass(frozen=True)
class Family:
    """The names of a family's weights as transformers spells them, with `{}` for the number of a layer.

    model_type: what config.json calls the family.
    prefix: what the names of all weights but the head begin with.
    embedding, head: the token embedding and the head, both [vocab_size, word_embed_proj_dim].
    layer: what the names of a layer's weights begin with.
    up, up_bias: the FFN's first projection, weight [ffn, d_model] and bias [ffn].
    down, down_bias: the FFN's second projection, weight [d_model, ffn] and bias [d_model].
    """

    model_type: str
    prefix: str
    embedding: str
    head: str
    layer: str
    up: str
    up_bias: str
    down: str
    down_bias: str

    def canonical(self, name: str) -> str | None:
        """A checkpoint's name for a weight as transformers spells it today, or None for a weight that isn't needed.

        Old files leave out the first `model.`, and some have one too many; transformers reads both.
        """
        bare, model = name.removeprefix("model."), "model."
        if bare == self.head:
            return self.head
        return model + bare if (model + bare).startswith(self.prefix) else None

    def streamed(self, layers: int) -> set[str]:
        """The names of the weights that stay on flash: two matrices a layer."""
        return {pattern.format(i) for i in range(layers) for pattern in (self.up, self.down)}

    def group_of(self, name: str) -> str:
        """The group that a resident weight is read with: `layers.<i>`, or EMBEDDINGS if it belongs to no layer."""
        begin = self.layer.partition("{}")[0]
        return f"layers.{name.removeprefix(begin).partition('.')[0]}" if name.startswith(begin) else EMBEDDINGS
