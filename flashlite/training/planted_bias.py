"""By what a planted neuron is kept from firing more often than it should: a bias of its own, or what stands in for one.

Falcon and Llama have no biases. There every embedding has the same component along one direction of the residual
stream, which norms keep, and a row that leans against this direction loses as much by each token as a bias takes away.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Bias(Protocol):
    """What a layer's neurons have in place of biases, or the biases themselves."""

    def clear(self, rows: Tensor) -> Tensor:
        """Rows [n, d_model] without what `mark` gives them, in the same memory."""

    def mark(self, rows: Tensor) -> Tensor:
        """Embeddings [n, d_model] with what all have in common, in the same memory."""

    def felt(self, x: Tensor, signs: Tensor) -> Tensor:
        """How much of a bias each token feels: [tokens, 1]. x: [tokens, d_model], the FFN's input; signs: its norm's
        weight [d_model]."""

    def rows(self, product: Tensor, bias: Tensor, signs: Tensor) -> Tensor:
        """The matrix that decides [ffn, d_model], in the product's memory.

        product: [ffn, d_model], of the two thin matrices
        bias: [ffn], for a token by which it is felt once
        signs: [d_model], the weight of the norm before
        """


class OwnBias:
    """Neurons have biases, so nothing has to stand in for them."""

    def clear(self, rows: Tensor) -> Tensor:
        """See Bias."""
        return rows

    def mark(self, rows: Tensor) -> Tensor:
        """See Bias."""
        return rows

    def felt(self, x: Tensor, signs: Tensor) -> Tensor:
        """See Bias."""
        return torch.ones(len(x), 1)

    def rows(self, product: Tensor, bias: Tensor, signs: Tensor) -> Tensor:
        """See Bias."""
        return product


class SharedDirection:
    """All embeddings have the same component along one direction, which is as large as all else in them together.

    noise: [d_model], from which the direction is made; it has no mean, because LayerNorm subtracts that
    """

    def __init__(self, noise: Tensor) -> None:
        self._direction = torch.nn.functional.normalize(noise - noise.mean(), dim=0)
        self._size = len(noise) ** 0.5

    def clear(self, rows: Tensor) -> Tensor:
        """See Bias."""
        return rows.addr_(rows @ self._direction, self._direction, alpha=-1.0)

    def mark(self, rows: Tensor) -> Tensor:
        """See Bias."""
        return rows.add_(self._direction, alpha=self._size)

    def felt(self, x: Tensor, signs: Tensor) -> Tensor:
        """See Bias."""
        return (x @ (signs * self._direction))[:, None]

    def rows(self, product: Tensor, bias: Tensor, signs: Tensor) -> Tensor:
        """See Bias."""
        return product.addr_(bias, signs * self._direction)
