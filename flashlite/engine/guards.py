"""What a streaming model refuses, in a line instead of torch's own error: tokens and positions that it hasn't, and to
be saved."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import OPTForCausalLM

from flashlite.errors import FlashliteError

OFFSET = 2  # rows of an OPT's position embedding before the first position


def guard(model: OPTForCausalLM) -> None:
    """Have a model raise FlashliteError for what it can't do."""
    decoder = model.model.decoder
    decoder.embed_tokens.register_forward_pre_hook(_check_tokens)
    decoder.embed_positions.register_forward_pre_hook(_check_positions, with_kwargs=True)
    model.save_pretrained = _refuse_saving


def _check_tokens(embedding: nn.Embedding, args: tuple[Tensor, ...]) -> None:
    for token in map(int, args[0].aminmax()):
        if not 0 <= token < embedding.num_embeddings:
            raise FlashliteError(
                f"token {token} is none of the model's {embedding.num_embeddings}: was the text tokenized for another?"
            )


def _check_positions(embedding: nn.Embedding, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    last, positions = int(kwargs["position_ids"].max()), embedding.num_embeddings - OFFSET
    if last >= positions:
        raise FlashliteError(f"{last + 1} tokens don't fit the model's {positions} positions: shorten the prompt")


def _refuse_saving(*_: Any, **__: Any) -> None:
    raise FlashliteError("a streaming model holds no FFN weights to save: copy its store or its checkpoint instead")
