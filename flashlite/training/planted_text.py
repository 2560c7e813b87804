"""What a planted model reads and writes: noise that changes fast by one part and slowly by another.

    the fast part    is each token's own, so that a token's neurons are its own too
    the slow part    resembles that of the tokens before, so that windows overlap
    the next token   is asked for clearly, so that the text doesn't hang on rounding

Where positions have embeddings, they are slow, and each asks for one random token. Where they have none, the text walks
along a chain through the vocabulary: each token asks for its successor, and the slow part drifts along the chain.
A head that is the embedding can't do this, because it asks for a token's predecessor as clearly.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig

from flashlite.families.family import Family
from flashlite.training.planted_bias import Bias

MEMORY = 10.0  # tokens within which the slow part changes
STANDS_OUT = 10.0  # the next token's logit; the logits' standard deviation is 1, or less
SEQUENCES, LENGTH = 8, 64  # so many sequences to calibrate on, and as many again to test on; so many tokens in each
STRETCH = 1024  # tokens of the chain that are made at a time; the slow part begins anew with each stretch


class Noise:
    """Standard normal noise, the same for the same seed and name."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Noise of this name and shape, float32."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
        return torch.randn(shape, generator=generator)


class Text(Protocol):
    """The tensors that belong to no layer, and what they make of a text."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One of these tensors, float32."""

    def hidden(self) -> Tensor:
        """The input of the first layer: [2 * SEQUENCES, LENGTH, d_model]."""


def drift(noise: Tensor) -> Tensor:
    """Noise [n, d_model] made slow in its own memory: of unit variance still, but a row resembles those before it."""
    keep = float(np.exp(-1 / MEMORY))
    for i in range(1, len(noise)):
        noise[i] = keep * noise[i - 1] + (1 - keep**2) ** 0.5 * noise[i]
    return noise


class PositionText:
    """Text by position: the embedding of positions is slow, and each asks for one random token.

    config, family: of the model
    noise: its noise
    slow: share of the input's variance that changes slowly
    """

    def __init__(self, config: PreTrainedConfig, family: Family, noise: Noise, slow: float) -> None:
        self._config, self._noise, self._slow = config, noise, slow
        self._embedding, self._positions = family.embedding_weight, f"{family.body}.{family.positions}.weight"
        self._project, self._norm = f"{family.body}.project_in.weight", f"{family.body}.final_layer_norm.weight"

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """See Text."""
        if name == self._embedding:
            return (1 - self._slow) ** 0.5 * self._noise(name, shape)
        if name == self._positions:
            return self._slow**0.5 * drift(self._noise("positions", shape)) + self._asks(shape[0])
        if name.endswith("bias"):
            return torch.zeros(shape)
        if len(shape) == 1:  # the last norm has random signs, else the head repeats its input
            return (shape[0] * (1 - self._slow)) ** -0.5 * self._noise(name, shape).sign()
        return shape[1] ** -0.5 * self._noise(name, shape)

    def _asks(self, positions: int) -> Tensor:
        """The part of the position embeddings by which each asks for one random token: [positions, d_model].

        The part is zero where embeddings have another width than the layers.
        """
        width, config = self._config.hidden_size, self._config
        if config.word_embed_proj_dim != width:
            return torch.zeros(())
        generator = torch.Generator().manual_seed(self._noise.seed)
        tokens = torch.randint(config.vocab_size, (positions,), generator=generator)
        norm = self.tensor(self._norm, (width,))
        return STANDS_OUT * norm * self._embedded()[tokens]

    def _embedded(self) -> Tensor:
        return self.tensor(self._embedding, (self._config.vocab_size, self._config.word_embed_proj_dim))

    def hidden(self) -> Tensor:
        """See Text. Random tokens stand at different positions."""
        config, generator = self._config, torch.Generator().manual_seed(self._noise.seed)
        ids = torch.randint(config.vocab_size, (2 * SEQUENCES, LENGTH), generator=generator)
        tokens, width = F.embedding(ids, self._embedded()), config.word_embed_proj_dim
        if width != config.hidden_size:
            tokens = F.linear(tokens, self.tensor(self._project, (config.hidden_size, width)))
        begins = torch.linspace(2, config.max_position_embeddings - LENGTH, 2 * SEQUENCES).long()
        positions = begins[torch.randperm(len(begins), generator=generator), None] + torch.arange(LENGTH)
        rows = (config.max_position_embeddings + 2, config.hidden_size)
        return tokens + F.embedding(positions, self.tensor(self._positions, rows))


class ChainText:
    """Text by a chain: each token asks for its successor in a random order of the vocabulary.

    config, family: of the model
    noise: its noise
    slow: share of the input's variance that changes slowly
    bias: by what neurons are kept from firing

    order: [vocab], the tokens along the chain, whose last one is followed by the first
    """

    def __init__(
        self, config: PreTrainedConfig, family: Family, noise: Noise, slow: float, bias: Bias
    ) -> None:  # fmt: skip
        self._width, self._noise, self._slow, self._bias = config.hidden_size, noise, slow, bias
        self._embedding, self._head = family.embedding_weight, family.head
        generator = torch.Generator().manual_seed(noise.seed)
        self.order = torch.randperm(config.vocab_size, generator=generator)
        self._begins = range(0, config.vocab_size, STRETCH)

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """See Text."""
        if name == self._embedding:
            return self._along_the_chain(self._embedded, self.order)
        if name == self._head:
            return self._along_the_chain(self._asks, self.order.roll(-1))
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)

    def _along_the_chain(self, rows: Callable[[int], Tensor], tokens: Tensor) -> Tensor:
        """Rows [vocab, d_model], made stretch by stretch, because none but the whole need be in DRAM at once.

        rows: makes those of the stretch that begins here
        tokens: [vocab], whose row is made where
        """
        whole = torch.empty(len(tokens), self._width)
        for begin in self._begins:
            whole[tokens[begin : begin + STRETCH]] = rows(begin)
        return whole

    def _fast(self, begin: int) -> Tensor:
        """The part of a stretch's tokens that is their own: [tokens, d_model]."""
        return self._bias.clear(self._noise(f"tokens.{begin}", self._shape(begin)))

    def _embedded(self, begin: int) -> Tensor:
        """The embedding of a stretch's tokens: [tokens, d_model]."""
        slow = drift(self._bias.clear(self._noise(f"chain.{begin}", self._shape(begin))))
        return self._bias.mark(((1 - self._slow) ** 0.5 * self._fast(begin)).add_(slow, alpha=self._slow**0.5))

    def _asks(self, begin: int) -> Tensor:
        """The rows of the head that stand for the successors of a stretch's tokens: [tokens, d_model]."""
        return self._fast(begin).mul_(STANDS_OUT / ((1 - self._slow) ** 0.5 * self._width))

    def _shape(self, begin: int) -> tuple[int, int]:
        return min(STRETCH, len(self.order) - begin), self._width

    def hidden(self) -> Tensor:
        """See Text. Each sequence is a walk along another part of the chain."""
        generator, walks = torch.Generator().manual_seed(self._noise.seed), []
        for _ in range(2 * SEQUENCES):
            begin = self._begins[int(torch.randint(max(1, len(self.order) // STRETCH), (), generator=generator))]
            tokens = self._embedded(begin)
            first = int(torch.randint(len(tokens) - LENGTH + 1, (), generator=generator))
            walks.append(tokens[first : first + LENGTH])
        return torch.stack(walks)
