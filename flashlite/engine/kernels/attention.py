"""Attention of a new token over the keys and values of those before it, by the same threads as the products.

What it reads grows with the text, and torch has a single thread in such a call, see threads.py. It is for float32, in
which int8 models compute, too. In bf16 and fp16 torch rounds each weight of a value, which this attention doesn't: two
tokens whose logits are nearly equal would change places with the dense model's. A prompt, and a batch that needs a
mask, take torch's own attention as well.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from numba import carray, njit, types
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from flashlite.engine.kernels.native import pointer
from flashlite.engine.kernels.rows import FLOAT32, add_up, any_order, multiply, parts_of
from flashlite.engine.kernels.team import FIRST, PARTS, Body, compiled, job_at, note_done, run, take

NAME = "one_token"  # of this attention among transformers'; no name with "flash" in it can be set there
VALUES, QUERY, SCORES, OUT, ROWS, HEADS, OF_SEQUENCE, GROUP, WIDTH, TOKENS, SEQUENCE, HEAD, TOKEN = range(
    FIRST, FIRST + 13
)  # of a job's numbers; the last three are strides
TORCH_ONLY = ("position_bias", "cache", "softcap")  # what transformers may pass, and only torch's attention has


@any_order
def _softmax(scores: Any) -> None:
    """Turn scores [tokens] into weights that add up to 1."""
    largest, total = scores[0], np.float32(0)
    for i in range(len(scores)):
        largest = max(largest, scores[i])
    for i in range(len(scores)):
        scores[i] = math.exp(scores[i] - largest)
        total += scores[i]
    for i in range(len(scores)):
        scores[i] /= total


@njit(forceinline=True)  # see any_order
def _attend(job: Any, keys: Any, head: int) -> None:
    """What the queries of one head of keys and values give. keys: a pointer to the first head's."""
    tokens, group, width = job[TOKENS], job[GROUP], job[WIDTH]
    begin = head // job[OF_SEQUENCE] * job[SEQUENCE] + head % job[OF_SEQUENCE] * job[HEAD]
    end = begin + tokens * job[TOKEN]
    every = (job[HEADS], group)
    query = carray(pointer(job[QUERY]), (*every, width), types.float32)[head]
    scores = carray(pointer(job[SCORES]), (*every, tokens), types.float32)[head]
    out = carray(pointer(job[OUT]), (*every, width), types.float32)[head]
    rows = carray(pointer(job[ROWS]), tokens, types.int64)
    multiply(carray(keys, end)[begin:end].reshape(tokens, job[TOKEN]), query, rows, scores, 0, tokens)
    for of_query in scores:
        _softmax(of_query)
    values = carray(pointer(job[VALUES]), end, types.float32)
    add_up(values[begin:end].reshape(tokens, job[TOKEN]), scores, rows, out, 0, tokens)


def _attends(address: int, keys: Any) -> None:
    job = job_at(address)
    parts, heads = job[PARTS], job[HEADS]
    part = take(address)
    while part < parts:
        for head in range(part * heads // parts, (part + 1) * heads // parts):
            _attend(job, keys, head)
        note_done(address)
        part = take(address)


@functools.cache
def _kernel() -> Body:
    return compiled(_attends, types.float32)


def attend(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """softmax(query keys^T * scaling) values, of one new token, all float32: [sequences, 1, heads, width].

    query: [sequences, heads, 1, width]
    keys, values: [sequences, heads or a part of them, tokens, width], in memory of the same strides; neighbours among
        the heads of a query share a head of these
    scaling: of the scores
    """
    sequences, heads, tokens, width = keys.shape
    group = query.shape[1] // heads
    given = query.mul(scaling).contiguous()
    scores = torch.empty(sequences * heads * group, tokens, **FLOAT32)
    out = torch.empty(sequences, 1, heads * group, width, **FLOAT32)
    rows = np.arange(tokens)
    numbers = (
        values.data_ptr(), given.data_ptr(), scores.data_ptr(), out.data_ptr(), rows.ctypes.data,
        sequences * heads, heads, group, width, tokens, *keys.stride()[:3],
    )  # fmt: skip
    parts = min(sequences * heads, parts_of(2 * keys.numel() * keys.itemsize))
    run(_kernel(), keys.data_ptr(), parts, numbers, (keys, values, given, scores, out, rows))
    return out


def is_plain(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, said: dict[str, Any]) -> bool:
    """Whether a call of `attention` is for one new token, float32 on the CPU, asking for nothing that only torch's has.

    A model's configuration names this attention, so that a dense model made of it may be trained, or run elsewhere.
    """
    given = (query, key, value)
    here = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in given)
    alike = here and key.stride() == value.stride() and key.stride(-1) == 1
    one = query.shape[2] == 1 and attention_mask is None and all(said.get(name) is None for name in TORCH_ONLY)
    training = any(tensor.requires_grad for tensor in given) or torch.is_autocast_enabled("cpu")
    return alike and one and not training and not any(said.get(name) for name in ("dropout", "output_attentions"))


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **said: Any
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it, by `attend` where that can, and else by torch.

    query: [sequences, heads, tokens, width]; for key and value see `attend`
    """
    if not is_plain(query, key, value, attention_mask, said):
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **said)
        return found
    scaling = said.get("scaling")
    return attend(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None


def use_attention(model: PreTrainedModel) -> None:
    """Let a model on the CPU attend so, if it asks transformers for its attention by name."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if model.config._attn_implementation == "sdpa" and model._supports_attention_backend:
        model.set_attn_implementation(NAME)
