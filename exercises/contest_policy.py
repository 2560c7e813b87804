"""The contest: fewest bytes in the same memory. Your policy says which neurons stay in DRAM.

A `Policy` is made for one layer and one text. For each token of the text, in order, `step` is told what the predictor
names and answers what leaves DRAM. Neurons that the token needs and that aren't in DRAM are loaded by themselves; each
load costs one neuron's bytes. You win by dropping what won't be needed soon and keeping what will.

The rules, by which the engine and the contest alike judge each answer:

1. A neuron that this token needs can't be dropped, nor can one that isn't in DRAM.
2. After each token at most `capacity` neurons are in DRAM: what was there, without what you drop, together with what
   the token needs and what you load on top.
3. You may load neurons that the token doesn't need. Each costs as much as any other load, so it pays only if dropping a
   neuron and loading it anew is what you would have to do otherwise.
4. A token that needs more than `capacity` neurons is cut to what fits before you see it; the rest passes through DRAM
   and counts as loaded, whatever you do.
5. You hear of a token only when you have answered to all before it. Layers take turns at each token, as in the engine:
   layer 0, layer 1, ... for the first token, then for the second.
6. The file runs in a process of its own: 2 GB of memory, 120 seconds for all traces together, NumPy and the standard
   library at hand, no other file of yours beside it.

Your score is 0 if you read what the window reads, and 100 if you read what Belady's policy reads, which knows the
future.

    flashlite contest                                        # your score on the course's traces
    flashlite contest --record my-traces --seed 7            # more traces to try it on: nobody grades these
    flashlite contest --traces my-traces
    flashlite bench --stage 5 --dram-budget 60% --impl ref,contest=mine    # your policy in the engine, tokens exact

What runs here now is the window, as long as the capacity allows. It scores 0.
"""

from __future__ import annotations

from collections import deque
from functools import reduce

import numpy as np

from flashlite.contest.traces import past  # past(layer, neurons): what was said of other texts, to learn from
from flashlite.engine.policies.rules import Change, Token


class Policy:
    """Which neurons of one layer stay in DRAM while one text is read or written.

    layer: its number, from 0
    neurons: how many it has; a neuron is a number from 0 to neurons - 1
    capacity: how many of them DRAM has room for

    `past(layer, neurons)` gives what this layer's predictor said of other texts, [tokens, neurons] int8 for each text:
    scores as below, so a token needs a neuron where its score is above 0. Call it here if you want to learn from them.
    The trace on which you are graded is never among them; on a model of another size the list is empty.
    """

    def __init__(self, layer: int, neurons: int, capacity: int) -> None:
        self.capacity = capacity
        self.tokens: deque[np.ndarray] = deque()  # what each of the last tokens needed
        self.held = np.zeros(0, np.int64)  # what is in DRAM

    def step(self, token: Token) -> Change:
        """What leaves DRAM at this token, and what is loaded on top of what the token needs.

        token.needed: [n] int64, sorted, the neurons that this token needs, at most `capacity`
        token.scores(): [neurons] int8, how sure the predictor is of each neuron: above 0 for those it names, and the
            higher the surer; 32 is the mean size of this token's scores

        Returns Change(drop=..., load=...): [n] whole numbers each, load empty unless given.
        Example: with capacity 4, [1 2 5] in DRAM and a token that needs [2 7 8], one of 1 and 5 must leave:
            Change(drop=[5]) loads 7 and 8 and holds [1 2 7 8]
            Change(drop=[1, 5], load=[3]) loads 3, 7 and 8 and holds [2 3 7 8]
        """
        self.tokens.append(token.needed)
        while len(kept := reduce(np.union1d, self.tokens)) > self.capacity:
            self.tokens.popleft()
        drop = np.setdiff1d(self.held, kept)
        self.held = kept
        return Change(drop)
