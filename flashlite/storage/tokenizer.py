"""Text in and out: a store's tokenizer and settings, prompts, and the windows that training and evaluation read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationConfig

from flashlite.errors import FlashliteError, StoreError
from flashlite.storage.store import Store
from flashlite.storage.strict_json import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_WINDOW = 512
GENERATION = "generation_config.json"


def load_tokenizer(store: Store) -> PreTrainedTokenizerBase:
    """The tokenizer packed with a model; code that its files name is never run.

    Raises FlashliteError if there is none, or none that can be had without such code.
    """
    from transformers import AutoTokenizer  # which measurements do without

    try:
        return AutoTokenizer.from_pretrained(store.path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # damaged files make tokenizers raise nearly anything
        raise FlashliteError(f"{store.path} holds no tokenizer that can be loaded: {_reason(error)}") from None


def generation_config(store: Store) -> GenerationConfig | None:
    """How the model's authors want it to generate, if they say so. Raises StoreError if they say it unclearly."""
    path = store.path / GENERATION
    if not path.exists():
        return None
    try:
        return GenerationConfig.from_dict(read_object(path))
    except Exception as error:  # each setting is checked in its own way
        raise StoreError(f"{path} is damaged: {_reason(error)}; remove it, or pack the model again") from None


@contextlib.contextmanager
def settings_named(store: Store) -> Iterator[None]:
    """Of what fails inside, name the settings that a model brings along, if it does: many show only in use that they
    are senseless. Raises FlashliteError."""
    try:
        yield
    except FlashliteError:
        raise
    except Exception as error:
        if not (store.path / GENERATION).exists():
            raise
        raise FlashliteError(
            f"generating failed, perhaps by a setting in {store.path / GENERATION}: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, store: Store) -> Tensor:
    """A prompt's tokens, [1, tokens] int64; of one that has none, such as the empty one, the model's first token.

    Raises FlashliteError if it is no valid Unicode, holds tokens that the model lacks, or leaves no position free.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise FlashliteError(f"the prompt is no valid UTF-8 at character {error.start}: write it as UTF-8") from None
    ids = tokenizer(prompt, verbose=False)["input_ids"] or [store.config.bos_token_id]
    _check_ids(ids, store)
    positions = store.config.max_position_embeddings
    if len(ids) >= positions:
        raise FlashliteError(f"the prompt's {len(ids)} tokens fill all {positions} positions of the model: shorten it")
    return torch.tensor([ids])


def _check_ids(ids: list[int], store: Store) -> None:
    """Raise FlashliteError if the model lacks one of these tokens."""
    strange = [i for i in ids if not isinstance(i, int) or not 0 <= i < store.config.vocab_size]
    if strange:
        raise FlashliteError(
            f"{store.path}: its tokenizer gives the token {strange[0]}, the model has {store.config.vocab_size}: "
            "is it another model's?"
        )


def read_files(files: Iterable[Path]) -> Iterator[str]:
    """The text of each file, bytes that are no UTF-8 replaced. Raises FlashliteError if one can't be read."""
    for file in files:
        try:
            yield Path(file).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise FlashliteError(f"{file} cannot be read: {error.strerror}") from None


def token_windows(texts: Iterable[str], store: Store, most_tokens: int) -> Tensor:
    """Consecutive windows of the texts' tokens: [windows, length], length the model's positions but at most 512.

    Every text is opened by the model's first token. Raises FlashliteError if the text fills no window, or holds tokens
    that the model lacks.
    """
    tokenizer, length = load_tokenizer(store), min(LONGEST_WINDOW, store.config.max_position_embeddings)
    ids: list[int] = []
    for text in texts:
        ids += [store.config.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        if len(ids) >= most_tokens:
            break
    _check_ids(ids, store)
    count = min(len(ids), most_tokens) // length
    if count == 0:
        raise FlashliteError(f"the text has {len(ids)} tokens, fewer than one window of {length}: give more")
    return torch.tensor(ids[: count * length]).view(count, length)
