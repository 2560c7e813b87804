"""What a model family calls its layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Names of a family's feed-forward weights in a checkpoint, with `{}` for the number of the layer.

    up: the first projection, weight [ffn, d_model]; down: the second, weight [d_model, ffn].
    """

    model_type: str
    prefix: str
    layer: str
    up: str
    down: str

    def canonical(self, name: str) -> str | None:
        """A checkpoint's name for a tensor as transformers spells it today; None for one that isn't needed.

        Old files say `decoder.x`, newer ones `model.decoder.x`. The head is the embedding, so its copy is dropped.
        """
        bare = name.removeprefix("model.")
        return f"model.{bare}" if bare.startswith(self.prefix) else None
