"""Closest friends, and why bundling by them fails."""

from __future__ import annotations

import torch

from flashlite.storage.bundle import closest_friends


def test_closest_friends_are_found() -> None:
    fired = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1]], dtype=torch.bool)
    assert closest_friends(fired).tolist()[:3] == [1, 0, 3]


def test_a_hot_neuron_is_everybodys_friend() -> None:
    fired = torch.rand(500, 40, generator=torch.Generator().manual_seed(0)) < 0.05
    fired[:, 7] = True
    friends = closest_friends(fired)
    assert (friends == 7).sum() >= 38
    assert friends[7] != 7
