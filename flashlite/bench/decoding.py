"""Decoding as the measurements need it: token by token, timed, compared with the dense model, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from flashlite.bench.row import Exactness, TokenCost
from flashlite.engine.model import Engine
from flashlite.engine.stages import NAMES
from flashlite.engine.timing import CallCost
from flashlite.errors import FlashliteError

ALLOWED_ERROR = {  # of logits, by what rounding alone does to the sum's order; int8 is computed in float32
    "fp32": 1e-3, "bf16": 0.5, "fp16": 0.1, "int8": 1e-3
}  # fmt: skip
WARM_UP = 4  # first tokens, left out of what is measured


@dataclass(frozen=True)
class Decoding:
    """What a model did with given tokens.

    prompt_ms: time of the prompt
    token_ms: time of each later token but the last one, because nothing is asked that would follow the last
    chosen: the tokens that the model itself would have chosen
    logits: [kept, vocab] float32, which choose the first of these tokens
    """

    prompt_ms: float
    token_ms: list[float]
    chosen: list[int]
    logits: Tensor


class Reserved(DynamicLayer):
    """One layer's keys and values in memory that is taken once.

    Transformers' DynamicCache takes new memory for each token and copies all of them there, which leaves several times
    its size in holes of the process's memory. Its StaticCache needs a mask for the places that are still empty, with
    which torch attends at less than half of the speed.

    room: for how many tokens
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the memory. key_states, value_states: [sequences, heads, tokens, width], the first ones."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._all = [new.new_zeros(*new.shape[:2], self._room, new.shape[-1]) for new in (key_states, value_states)]
        self.keys, self.values = (every[:, :, :0] for every in self._all)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens. Returns those of all tokens so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        for every, new in zip(self._all, (key_states, value_states), strict=True):
            every[:, :, begin:end] = new
        self.keys, self.values = (every[:, :, :end] for every in self._all)
        return self.keys, self.values


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: list[int], tokens: int) -> tuple[list[int], Tensor]:
    """The next `tokens` tokens, and the logits that chose them: [tokens, vocab] float32."""
    ids = torch.tensor([prompt], device=model.device)
    out = model.generate(
        ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, num_beams=1,
        output_logits=True, return_dict_in_generate=True, eos_token_id=None,
    )  # fmt: skip
    return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits).float().cpu()


@torch.no_grad()
def feed(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> Iterator[tuple[float, Tensor]]:
    """Call a model for the prompt and then for one given token after the other, as decoding would.

    Each call yields its milliseconds, and the logits [vocab] from which the model would choose the token that follows,
    on the host, because a GPU's time is over only when they are there.
    The memory of keys and values is taken once, see Reserved.
    """
    room = len(prompt) + len(tokens)
    cache = Cache(layers=[Reserved(room) for _ in range(model.config.num_hidden_layers)])
    for ids in [prompt, *([token] for token in tokens[:-1])]:
        began = time.perf_counter()
        given = torch.tensor([ids], device=model.device)
        logits = model(given, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].cpu()
        yield 1e3 * (time.perf_counter() - began), logits


def forced(model: PreTrainedModel, prompt: list[int], tokens: list[int], kept: int | None = None) -> Decoding:
    """`feed` a model all tokens. kept: for how many tokens the logits are kept; for all of them unless it is given."""
    kept = len(tokens) if kept is None else kept
    times, chosen, logits = [], [], torch.empty(kept, model.config.vocab_size)
    for i, (milliseconds, found) in enumerate(feed(model, prompt, tokens)):
        times.append(milliseconds)
        chosen.append(int(found.argmax()))
        if i < kept:
            logits[i] = found
    return Decoding(times[0], times[1:], chosen, logits)


def exactness(model: PreTrainedModel, stage: int, prompt: list[int], tokens: list[int], logits: Tensor) -> Exactness:
    """How a stage with the oracle predictor compares with the dense model's tokens and logits [tokens, vocab].

    The stage is given the dense model's tokens, so that choosing each of them means that it writes the same text.
    Raises FlashliteError as `compare_logits` does.
    """
    who = f"stage {stage} ({NAMES[stage]})"
    return compare_logits(forced(model, prompt, tokens).logits, logits, model.flash.store.dtype_name, who)


def compared(found: Tensor, logits: Tensor) -> Exactness:
    """Logits beside the dense model's. found, logits: [tokens, vocab] float32."""
    return Exactness(bool((found.argmax(-1) == logits.argmax(-1)).all()), float((found - logits).abs().max()))


def compare_logits(found: Tensor, logits: Tensor, dtype: str, who: str) -> Exactness:
    """`compared`, for logits that must be the dense model's.

    Raises FlashliteError if a token differs, or if the logits differ by more than rounding explains.
    """
    exact = compared(found, logits)
    if not exact.tokens_equal or not exact.max_logit_error <= ALLOWED_ERROR[dtype]:
        raise FlashliteError(
            f"{who} is wrong: with the oracle predictor its tokens {'equal' if exact.tokens_equal else 'differ from'} "
            f"the dense model's and its logits are off by {exact.max_logit_error:.3g}; no speed is shown for a wrong "
            "answer"
        )
    return exact


def agreement(chosen: list[int], tokens: list[int]) -> float:
    """The share of the tokens that a model would choose as the dense model did, 0 to 1."""
    return float(np.mean([a == b for a, b in zip(chosen, tokens, strict=True)]))


def per_token(engine: Engine) -> TokenCost:
    """What an engine that decoded needed for a token, after the first WARM_UP tokens."""
    calls = [call for call in engine.calls if call.tokens == 1][WARM_UP:]
    ordered, quarter = sorted(calls, key=lambda call: call.total_ms), len(calls) // 4
    middle = ordered[quarter : len(calls) - quarter]

    def mean(name: str, of: list[CallCost] = calls) -> float:
        return float(np.mean([getattr(call, name) for call in of]))

    nbytes, io_ms = mean("bytes"), mean("io_ms", middle)
    return TokenCost(
        tokens=len(calls), io_ms=io_ms, memory_ms=mean("memory_ms", middle), compute_ms=mean("compute_ms", middle),
        product_ms=mean("product_ms", middle), total_ms=mean("total_ms", middle), bytes_per_token=nbytes,
        reads_per_token=mean("reads"), read_mb_s=nbytes / io_ms / 1e3 if io_ms else 0.0,
        prefetched_bytes=mean("prefetched"), wasted_bytes=mean("wasted"), batches_per_token=_batches(engine),
        rows_moved=engine.rows_moved / len(engine.calls), dram_bytes=_dram(engine), copy_ms=mean("copy_ms", middle),
    )  # fmt: skip


def _batches(engine: Engine) -> int:
    """How often a token waits for reads: once a layer, or, streamed, once a pass."""
    layers, stage = engine.store.layers, engine.stage
    passes = 1 if stage.predictor else -(-engine.store.shape.neurons // engine.stream.rows)
    return layers * passes + (0 if stage.resident else layers + 1)


def _dram(engine: Engine) -> int:
    """DRAM that the budget accounts for, as it was spent, in bytes."""
    budget, record = engine.budget, engine.store.shape.record_bytes
    rows = sum(budget.layer_rows) + engine.stage.memory.spare * max(budget.layer_rows, default=0)
    return budget.resident + budget.predictors + budget.buffers + rows * record
