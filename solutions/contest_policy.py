"""The contest: an entry that guesses how soon each neuron is needed again, and drops those that are needed last.

Why it is as it is. Belady's policy needs one thing that nobody has: the time at which each neuron is needed next. So
guess it, from all that is known at a token, and drop the neurons with the lowest guess.

- Recency and frequency are the same thing at different speeds: averages of past needs that fade over 2, 5, 15 and 50
  tokens. Together they beat LRU and any single frequency, because some neurons come in bursts and others go on for a
  whole text.
- How often a neuron is needed in other texts says what to think of one that this text hasn't asked for yet.
- The predictor's score says more than its name: a neuron that is named with a high score is likely to come again.
- The strongest fact is a memory. A token whose scores resemble those of an earlier token is followed by what followed
  then, above all in code, which repeats itself. So the policy keeps every token of this text and of the texts to learn
  from, with what came after it, and asks which of them are most like the token at hand.

Each fact gets a weight. The weights are those of a linear regression on how soon neurons were needed, in traces of text
that no contest is held on (tools/fit_contest.py). Loading ahead of need gains nothing here, because a neuron that is
loaded early costs what it would have cost later. What remains to Belady is what nobody can guess: the first use of a
neuron, and text that is new.
"""

from __future__ import annotations

import numpy as np

from flashlite.contest.traces import past
from flashlite.engine.policies.rules import Change, Token

FADES = np.array([0.5, 0.8, 0.93, 0.98], np.float32)  # of the averages of past needs, for each token that passes
SOON = 0.5  # a need counts this much less for each token that it is further away
REACH = 8  # tokens after which it counts nothing
SHARP = 14.0  # how much more a memory counts that is more alike
WEIGHTS = np.array([0.037, -0.076, 0.253, 0.176, -0.034, -0.041, 0.518, 0.159], np.float32)  # of `facts`


class Memory:
    """Tokens by their scores, and what was needed soon after each.

    neurons: how many the layer has
    """

    def __init__(self, neurons: int) -> None:
        self.keys = np.zeros((0, neurons), np.float32)
        self.after = np.zeros((0, neurons), np.float32)

    def add(self, keys: np.ndarray, needed: np.ndarray) -> None:
        """Add tokens that follow on those before. keys: [tokens, neurons]; needed: [tokens, neurons] bool."""
        first = len(self.keys)
        self.keys = np.concatenate([self.keys, keys])
        self.after = np.concatenate([self.after, np.zeros_like(keys)])
        for distance in range(1, REACH + 1):
            begin = max(0, first - distance)
            until = len(self.keys) - distance
            if until > begin:
                self.after[begin:until] += (1 - SOON) * SOON ** (distance - 1) * needed[begin + distance - first :]

    def recall(self, key: np.ndarray, last: int | None = None) -> np.ndarray:
        """What was needed soon after tokens like this one: [neurons], each from 0 to 1.

        key: [neurons], of this token
        last: where to stop, so that a token isn't told of itself
        """
        keys, after = self.keys[:last], self.after[:last]
        if not len(keys):
            return np.zeros_like(key)
        weights = np.exp(SHARP * (keys @ key - 1))
        return weights @ after / weights.sum()


def key_of(scores: np.ndarray) -> np.ndarray:
    """What tokens are compared by: their positive scores, of length 1. scores: [tokens, neurons] int8."""
    positive = np.maximum(scores, 0).astype(np.float32)
    return positive / np.maximum(np.linalg.norm(positive, axis=-1, keepdims=True), 1)


class Policy:
    """See exercises/contest_policy.py."""

    def __init__(self, layer: int, neurons: int, capacity: int) -> None:
        self.capacity = capacity
        self.held = np.zeros(neurons, bool)
        self.averages = np.zeros((len(FADES), neurons), np.float32)
        self.here, self.elsewhere = Memory(neurons), Memory(neurons)
        self.usual = np.zeros(neurons, np.float32)  # how often each neuron is needed in other texts
        others = past(layer, neurons)
        for scores in others:
            text = Memory(neurons)
            text.add(key_of(scores), scores > 0)
            self.elsewhere.keys = np.concatenate([self.elsewhere.keys, text.keys])
            self.elsewhere.after = np.concatenate([self.elsewhere.after, text.after])
            self.usual += (scores > 0).mean(0) / len(others)

    def facts(self, token: Token) -> np.ndarray:
        """All that is known of each neuron after a token: [8, neurons]."""
        scores = token.scores()
        needed, key = np.zeros(len(scores), np.float32), key_of(scores)
        needed[token.needed] = 1
        self.averages += (1 - FADES[:, None]) * (needed - self.averages)
        self.here.add(key[None], needed[None])
        like = [self.here.recall(key, -1), self.elsewhere.recall(key)]
        return np.stack([np.maximum(scores, 0) / np.float32(32), *self.averages, self.usual, *like])

    def step(self, token: Token) -> Change:
        """Drop what is needed last, by the guess, as far as room is needed."""
        worth = WEIGHTS @ self.facts(token)
        may_leave = self.held.copy()
        may_leave[token.needed] = False
        self.held[token.needed] = True
        excess = max(0, np.count_nonzero(self.held) - self.capacity)
        others = np.flatnonzero(may_leave)
        drop = others[np.argsort(worth[others], kind="stable")[:excess]]
        self.held[drop] = False
        return Change(drop)
