"""Text as the windows of tokens that training and evaluation read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from flashlite.errors import FlashliteError
from flashlite.store import Store

LONGEST_WINDOW = 512


def load_tokenizer(store: Store) -> PreTrainedTokenizerBase:
    """The tokenizer packed with a model. Raises FlashliteError if there is none."""
    try:
        return AutoTokenizer.from_pretrained(store.path)
    except (OSError, ValueError, KeyError) as error:
        raise FlashliteError(f"{store.path} holds no tokenizer that can be loaded: {error}") from None


def read_files(files: Iterable[Path]) -> Iterator[str]:
    """The text of each file. Raises FlashliteError if one can't be read."""
    for file in files:
        try:
            yield Path(file).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise FlashliteError(f"{file} cannot be read: {error.strerror}") from None


def token_windows(texts: Iterable[str], store: Store, most_tokens: int) -> Tensor:
    """Consecutive windows of the texts' tokens: [windows, length], length the model's positions but at most 512.

    Every text is opened by the model's first token. Raises FlashliteError if the text fills no window.
    """
    tokenizer, length = load_tokenizer(store), min(LONGEST_WINDOW, store.config.max_position_embeddings)
    ids: list[int] = []
    for text in texts:
        ids += [store.config.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        if len(ids) >= most_tokens:
            break
    count = min(len(ids), most_tokens) // length
    if count == 0:
        raise FlashliteError(f"the text has {len(ids)} tokens, fewer than one window of {length}: give more")
    return torch.tensor(ids[: count * length]).view(count, length)
