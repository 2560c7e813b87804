"""Text and tokens: a store's tokenizer and generation settings, prompts, and windows of text for training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig

from flashlite.errors import FlashliteError, StoreError, one_line
from flashlite.storage.side_files import CONFIG, GENERATION
from flashlite.storage.store import Store
from flashlite.storage.strict_json import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_WINDOW = 512
NO_SETTINGS = {  # but facts, which every config.json holds
    "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "output_attentions", "output_hidden_states",
    "transformers_version", "_from_model_config",
}  # fmt: skip


class Speaker(Protocol):
    """What a tokenizer is loaded for: a store, or whatever else has the folder of a model and its configuration."""

    @property
    def path(self) -> Path:
        """The folder."""

    @property
    def config(self) -> PreTrainedConfig:
        """Transformers' own configuration."""


def load_tokenizer(store: Speaker) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Code that its files name is never run.

    Raises FlashliteError if there is none, or if it can't be loaded without such code.
    """
    return tokenizer_in(store.path)


def tokenizer_in(folder: Path) -> PreTrainedTokenizerBase:
    """The same of the folder of a store or a checkpoint."""
    from transformers import AutoTokenizer  # slow to import, and measuring processes don't need it

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens) and not tokenizer("a")["input_ids"]:
            raise ValueError("its vocabulary is empty, as where the checkpoint has no files of a tokenizer")
        return tokenizer
    except Exception as error:  # damaged files make tokenizers raise nearly anything
        raise FlashliteError(
            f"{folder} does not hold a tokenizer that can be loaded: {_reason(error)}; add the tokenizer's files "
            "to the checkpoint, or call the model with token ids in Python"
        ) from None


def generation_config(store: Store) -> GenerationConfig:
    """How the model's authors want it to generate, as transformers reads it: from generation_config.json, or, where
    there is none, from the settings that older models have in config.json.

    Raises StoreError if a setting is senseless.
    """
    path = _settings_file(store)
    with one_line(path, StoreError):
        try:
            if path.name == GENERATION:
                return GenerationConfig.from_dict(read_object(path))
            return GenerationConfig.from_model_config(dict(store.manifest["config"]))
        except OSError:
            raise
        except Exception as error:  # each setting is checked in its own way
            raise StoreError(f"{path} is damaged: {_reason(error)}; mend it, or pack the model again") from None


def _settings_file(store: Store) -> Path:
    return store.path / (GENERATION if (store.path / GENERATION).exists() else CONFIG)


@contextlib.contextmanager
def settings_named(store: Store) -> Iterator[None]:
    """Name the settings that a model brings along, if it has any, in an error that is raised inside.

    Many settings show only in use that they are senseless. Raises FlashliteError.
    """
    try:
        yield
    except FlashliteError:
        raise
    except Exception as error:
        where = _settings_file(store)
        if where.name == CONFIG and not generation_config(store).to_diff_dict().keys() - NO_SETTINGS:
            raise
        raise FlashliteError(f"generating failed, perhaps because of a setting in {where}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def first_token(store: Speaker) -> list[int]:
    """The token that begins each text, as a list [token], or [] if the model has none."""
    bos = store.config.bos_token_id
    return [] if bos is None else [bos]


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, store: Store) -> Tensor:
    """A prompt's tokens: [1, tokens] int64. A prompt without any, such as the empty one, gives the model's first token.

    Raises FlashliteError if the prompt is not valid Unicode, if it holds tokens that the model lacks, if there is no
    token, or if no position is left free.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise FlashliteError(f"the prompt is not valid UTF-8 at character {error.start}: write it as UTF-8") from None
    ids = tokenizer(prompt, verbose=False)["input_ids"] or first_token(store)
    if not ids:
        raise FlashliteError("the prompt has no tokens, and the model has no token to begin with: write a prompt")
    _check_ids(ids, store)
    positions = store.config.max_position_embeddings
    if len(ids) >= positions:
        raise FlashliteError(f"the prompt's {len(ids)} tokens fill all {positions} positions of the model: shorten it")
    return torch.tensor([ids])


def _check_ids(ids: list[int], store: Speaker) -> None:
    """Raise FlashliteError if the model lacks one of these tokens."""
    strange = [i for i in ids if not isinstance(i, int) or not 0 <= i < store.config.vocab_size]
    if strange:
        raise FlashliteError(
            f"{store.path}: its tokenizer gives the token {strange[0]}, the model has {store.config.vocab_size}: "
            "is it another model's?"
        )


def read_files(files: Iterable[Path]) -> Iterator[str]:
    """The text of each file, where bytes that are not UTF-8 are replaced. Raises FlashliteError if it can't be read."""
    for file in files:
        with one_line(file, FlashliteError):
            text = Path(file).read_text(encoding="utf-8", errors="replace")
        yield text


def token_windows(texts: Iterable[str], store: Speaker, most_tokens: int) -> Tensor:
    """Consecutive windows of the texts' tokens: [windows, length], length the model's positions but at most 512.

    Each text begins with the model's first token, if it has one. Raises FlashliteError if the text fills no window, or
    holds tokens that the model lacks.
    """
    tokenizer, length = load_tokenizer(store), min(LONGEST_WINDOW, store.config.max_position_embeddings)
    ids: list[int] = []
    for text in texts:
        ids += [*first_token(store), *tokenizer(text, add_special_tokens=False)["input_ids"]]
        if len(ids) >= most_tokens:
            break
    _check_ids(ids, store)
    tokens = min(len(ids), most_tokens)
    count = tokens // length
    if count == 0:
        raise FlashliteError(f"{tokens} tokens are fewer than one window of {length}: give more text, or more tokens")
    return torch.tensor(ids[: count * length]).view(count, length)
