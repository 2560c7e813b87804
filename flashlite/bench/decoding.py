"""Decoding as the measurements need it: token by token, timed, and compared with the dense model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import OPTForCausalLM, StaticCache

from flashlite.engine.stages import NAMES
from flashlite.errors import FlashliteError

ALLOWED_ERROR = {"fp32": 1e-3, "bf16": 0.5, "fp16": 0.1}  # of logits, by what rounding alone does to the sum's order


@dataclass(frozen=True)
class Decoding:
    """What a model made of a text. prompt_ms: the prompt's time; token_ms: that of each later token but the last, whose
    output nobody asked for; chosen: the tokens that the model would choose; logits: [kept, vocab] float32, those that
    choose each of the first tokens."""

    prompt_ms: float
    token_ms: list[float]
    chosen: list[int]
    logits: Tensor


@torch.no_grad()
def greedy(model: OPTForCausalLM, prompt: list[int], tokens: int) -> tuple[list[int], Tensor]:
    """The next `tokens` tokens, and the logits that chose them: [tokens, vocab] float32."""
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, num_beams=1,
        output_logits=True, return_dict_in_generate=True, eos_token_id=None,
    )  # fmt: skip
    return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits).float()


@torch.no_grad()
def forced(model: OPTForCausalLM, prompt: list[int], tokens: list[int], kept: int | None = None) -> Decoding:
    """Feed given tokens one by one, as decoding would. kept: of how many tokens to keep the logits, all unless given.

    The cache of keys and values is allocated once: one that grows leaves several times its size in holes of the
    process's memory.
    """
    kept = len(tokens) if kept is None else kept
    times, chosen, logits = [], [], torch.empty(kept, model.config.vocab_size)
    cache = StaticCache(config=model.config, max_cache_len=len(prompt) + len(tokens))
    for i, ids in enumerate([prompt, *([token] for token in tokens[:-1])]):
        began = time.perf_counter()
        out = model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        times.append(1e3 * (time.perf_counter() - began))
        chosen.append(int(out.logits[0, -1].argmax()))
        if i < kept:
            logits[i] = out.logits[0, -1]
    return Decoding(times[0], times[1:], chosen, logits)


def exactness(
    model: OPTForCausalLM, stage: int, prompt: list[int], tokens: list[int], logits: Tensor
) -> dict[str, Any]:
    """How a stage with the oracle predictor compares with the dense model's tokens and logits [tokens, vocab].

    The stage is given the dense model's tokens, so that choosing each of them means that it writes the same text.
    Raises FlashliteError as `compare_logits` does.
    """
    return compare_logits(
        forced(model, prompt, tokens).logits, logits, model.flash.store.dtype_name, f"stage {stage} ({NAMES[stage]})"
    )


def compare_logits(found: Tensor, logits: Tensor, dtype: str, who: str) -> dict[str, Any]:
    """Whether logits are the dense model's: tokens_equal and max_logit_error.

    found, logits: [tokens, vocab] float32. Raises FlashliteError if a token differs, or if the logits differ by more
    than rounding explains.
    """
    equal, error = bool((found.argmax(-1) == logits.argmax(-1)).all()), float((found - logits).abs().max())
    if not equal or not error <= ALLOWED_ERROR[dtype]:
        raise FlashliteError(
            f"{who} is wrong: with the oracle predictor its tokens {'equal' if equal else 'differ from'} the dense "
            f"model's and its logits are off by {error:.3g}; no speed is shown for a wrong answer"
        )
    return {"tokens_equal": equal, "max_logit_error": error}
