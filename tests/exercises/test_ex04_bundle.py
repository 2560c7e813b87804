"""Exercises 4.1 to 4.3: row-column bundling."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from flashlite.course.checks import Call, expect, expect_each, require, rng
from flashlite.storage.bundle import closest_friends, pack_bundles, unpack_bundles

FFN, D_MODEL = 24, 10


def weights(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random weights."""
    return torch.from_numpy(rng().standard_normal(shape)).to(dtype)


def layer(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The up and the down projection as published: [FFN, D_MODEL] and [D_MODEL, FFN]."""
    both = weights(2, FFN * D_MODEL, dtype=dtype)
    return both[0].reshape(FFN, D_MODEL), both[1].reshape(D_MODEL, FFN)


def row_by_row(up: Tensor, down: Tensor) -> Tensor:
    """Each neuron's row of up and column of down, one neuron after the other: [FFN, 2 * D_MODEL]."""
    both = torch.zeros(FFN, 2 * D_MODEL, dtype=up.dtype)
    for i in range(FFN):
        both[i, :D_MODEL] = up[i]
        both[i, D_MODEL:] = down[:, i]
    return both


def packed(up: Tensor, down: Tensor, record_bytes: int) -> np.ndarray:
    """What pack_bundles gives, if it is bytes of the right shape."""
    rows = pack_bundles(up, down, record_bytes)
    require(isinstance(rows, np.ndarray), f"pack_bundles returned a {type(rows).__name__}", "a NumPy array")
    require(rows.dtype == np.uint8, f"rows of dtype {rows.dtype}", "uint8", "Rows hold the bytes of the weights.")
    expect(rows.shape, (FFN, record_bytes), "shape of the rows")
    return np.ascontiguousarray(rows)


@pytest.mark.points("4.1", 2)
def test_a_row_holds_both_halves_of_a_neuron() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        check_halves(dtype)


def check_halves(dtype: torch.dtype) -> None:
    """Each row holds its neuron's weights of this dtype."""
    up, down = layer(dtype)
    content = 2 * D_MODEL * dtype.itemsize
    found = torch.from_numpy(packed(up, down, content + 24)[:, :content].copy()).view(dtype)
    mistakes = {
        "The down projection was reshaped, not transposed: neuron i needs its column i.": torch.cat(
            [up, down.reshape(FFN, D_MODEL)], 1
        ),
        "The halves are swapped: the up projection's row comes first.": row_by_row(up, down).roll(D_MODEL, 1),
        "The padding belongs at the end of a row, after both halves.": torch.cat(
            [torch.zeros(FFN, 24 // dtype.itemsize), row_by_row(up, down)[:, : -24 // dtype.itemsize]], 1
        ),
    }
    calls = []
    for i, row in enumerate(row_by_row(up, down)):
        wrong = {text: halves(rows[i]) for text, rows in mistakes.items()}
        calls.append(Call(partial(halves, found[i]), halves(row), f"up and down weights in row {i}", wrong))
    expect_each(calls)


def halves(row: Tensor) -> tuple[Tensor, Tensor]:
    """A row's first D_MODEL weights, and those after them."""
    return row[:D_MODEL], row[D_MODEL:]


@pytest.mark.points("4.1", 1)
def test_what_remains_of_a_row_is_zeros() -> None:
    up, down = layer(torch.float16)
    before = up.clone(), down.clone()
    content = 2 * D_MODEL * up.itemsize
    for padding in (0, 1, 472):
        rows = packed(up, down, content + padding)
        expect(rows[:, content:], np.zeros((FFN, padding)), f"the last {padding} bytes of the rows")
    expect((up, down), before, "the caller's weights afterwards", {"The caller's weights were changed.": (up, down)})


@pytest.mark.points("4.2", 0)
@pytest.mark.parametrize("padding", [0, 6])
def test_rows_are_cut_into_both_projections(padding: int) -> None:
    rows = weights(FFN, 2 * D_MODEL + padding)
    numbers = rows.numpy()
    up = np.stack([row[:D_MODEL] for row in numbers])
    down = np.stack([row[D_MODEL : 2 * D_MODEL] for row in numbers])
    mistakes = {
        "The padding at the end of the rows isn't part of the down projection.": (up, numbers[:, D_MODEL:]),
        "The halves are swapped: the up projection's row comes first.": (down, up),
        "The down projection stays transposed: row i belongs to neuron i.": (up, down.T),
        "The rows were cut in the middle of all their columns: padding isn't weights.": tuple(np.split(numbers, 2, 1)),
    }
    expect(unpack_bundles(rows, D_MODEL), (up, down), f"up and down, rows with {padding} of padding", mistakes)
    expect(unpack_bundles(rows[:0], D_MODEL), (rows[:0, :D_MODEL],) * 2, "up and down of no rows")


@pytest.mark.points("4.2", 0)
def test_nothing_is_copied() -> None:
    rows = weights(FFN, 2 * D_MODEL + 6)
    up, down = unpack_bundles(rows, D_MODEL)
    rows += 1  # a read lands in the rows
    text = "The projections were copied: a view shows what lands in the rows later."
    require(torch.equal(up, rows[:, :D_MODEL]), "up doesn't show what lands in the rows", "views only", text)
    require(torch.equal(down, rows[:, D_MODEL:-6]), "down doesn't show what lands in the rows", "views only", text)


def firing(tokens: int = 4000, neurons: int = 40) -> np.ndarray:
    """Which neurons fire for which token: some seldom, some often, in loose groups; neuron 0 never."""
    random = rng()
    topic = random.integers(5, size=tokens)[:, None]
    rate = random.uniform(0.02, 0.9, neurons)
    fired = random.random((tokens, neurons)) < np.where(topic == np.arange(neurons) % 5, rate, rate / 4)
    fired[:, 0] = False
    return fired


def counts(fired: np.ndarray) -> np.ndarray:
    """For how many tokens two neurons fire together: [ffn, ffn], -1 for a neuron with itself."""
    neurons = fired.shape[1]
    together = np.full((neurons, neurons), -1)
    for i in range(neurons):
        for j in range(neurons):
            if i != j:
                together[i, j] = np.count_nonzero(fired[:, i] & fired[:, j])
    return together


def friends_of(fired: np.ndarray) -> np.ndarray:
    """What closest_friends gives, if it is one other neuron for each."""
    given = torch.from_numpy(fired.copy())
    found = closest_friends(given)
    expect(given, fired, "`fired` afterwards")
    require(found.dtype == torch.int64, f"friends of dtype {found.dtype}", "torch.int64")
    expect(tuple(found.shape), (fired.shape[1],), "shape of the friends")
    friends = found.numpy()
    inside = (friends >= 0) & (friends < fired.shape[1])
    require(inside.all(), f"friend {friends[~inside][:1]}", f"0 to {fired.shape[1] - 1}")
    own = np.flatnonzero(friends == np.arange(len(friends)))
    require(not len(own), f"neurons {own[:4]} are each its own friend", "other neurons only",
            "The diagonal must be below every other count, and these may be 0.")  # fmt: skip
    return friends


def check_friends(fired: np.ndarray, what: str) -> np.ndarray:
    """Each friend must fire with its neuron as often as any other does. Returns the friends."""
    together, friends = counts(fired), friends_of(fired)
    everyone, rate = np.arange(len(together)), fired.sum(0)
    at_most = np.where(together < 0, -1.0, together)
    mistakes = {
        "Counts wrapped around: a byte can't count more than 255 tokens.": np.where(together < 0, -1, together % 256),
        "Shares of the other neuron's firing were compared: the paper compares how often both fire.": at_most
        / np.maximum(rate, 1),
        "Neurons that fire seldom together were chosen.": -np.where(together < 0, 10**9, together),
        "The neuron that fires most often at all was chosen, together or not.": np.where(together < 0, -1, rate),
    }
    wrong = {text: together[everyone, score.argmax(1)] for text, score in mistakes.items()}
    expect(together[everyone, friends], together.max(1), f"{what}: tokens that a neuron shares with its friend", wrong)
    return friends


@pytest.mark.points("4.3", 2)
def test_the_closest_friend_fires_most_often_together_with_a_neuron() -> None:
    check_friends(firing(), "4000 tokens")


@pytest.mark.points("4.3", 1)
def test_a_neuron_that_never_fires_has_another_one_as_its_friend() -> None:
    friends_of(firing())
    friends_of(np.zeros((3, 5), bool))


@pytest.mark.points("4.3", 1)
def test_a_hot_neuron_is_everybodys_friend_and_is_read_again_and_again() -> None:
    fired, hot = firing(), 7
    fired[:, hot] = rng().random(len(fired)) < 0.95
    friends = check_friends(fired, "one hot neuron")
    others = np.flatnonzero(fired.sum(0) > 300)
    share = np.mean(friends[others] == hot)
    require(share > 0.8, f"the hot neuron is the friend of {share:.0%} of the neurons", "more than 80%")
    reads = sum(np.count_nonzero(friends[np.flatnonzero(token)] == hot) for token in fired)
    require(reads > 2 * len(fired), f"bundles would read it {reads} times in {len(fired)} tokens", "over 2 a token")
