"""What a model family calls its layers."""

from __future__ import annotations

from dataclasses import dataclass

from flashlite.errors import CheckpointError


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


OPT = Family(
    model_type="opt",
    prefix="decoder.",
    layer="model.decoder.layers.{}.",
    up="model.decoder.layers.{}.fc1.weight",
    down="model.decoder.layers.{}.fc2.weight",
)


def family_of(config: dict) -> Family:
    """The family of a checkpoint's config.json. Raises CheckpointError if its FFN can't be streamed sparsely."""
    if config.get("model_type") != OPT.model_type:
        raise CheckpointError(f"model type {config.get('model_type')!r} is not supported: flashlite streams OPT")
    if (activation := config.get("activation_function", "relu")) != "relu":
        raise CheckpointError(
            f"activation {activation!r} is not supported: only ReLU leaves neurons at exactly zero, so only with ReLU "
            "can their weights stay on flash"
        )
    if not config.get("tie_word_embeddings", True):
        raise CheckpointError("tie_word_embeddings is false: flashlite streams models whose head is the embedding")
    return OPT
