"""Fit the weights of solutions/contest_policy.py on recorded traces: python tools/fit_contest.py FOLDER.

For each trace the policy learns from three others of the folder. What its facts are to tell is how soon each neuron is
needed: a need that is further away by one token counts HORIZON times as much. Prints the weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from flashlite.contest import traces
from flashlite.course.plug import Plug, load

SOLUTION = Path(__file__).parent.parent / "solutions/contest_policy.py"
HORIZON = 0.6
ENDS = 15  # last tokens of a trace, of which it can't be told how soon neurons are needed


def how_soon(needed: np.ndarray) -> np.ndarray:
    """After each token, how soon each neuron is needed: [tokens, neurons]. needed: [tokens, neurons] bool."""
    soon = np.zeros(needed.shape, np.float32)
    for t in range(len(needed) - 2, -1, -1):
        soon[t] = HORIZON * soon[t + 1] + (1 - HORIZON) * needed[t + 1]
    return soon


def main() -> None:
    files, solution = traces.trace_files(Path(sys.argv[1])), load(Plug(str(SOLUTION)))
    squares, products = 0.0, 0.0
    for i, path in enumerate(files):
        traces.train_on([files[(i + k) % len(files)] for k in (1, 2, 3)])
        trace = traces.read_trace(path)
        for layer, capacity in enumerate(trace.capacity):
            policy, soon = solution.Policy(layer, trace.neurons, capacity), how_soon(trace.scores[layer] > 0)
            for t in range(trace.tokens - ENDS):
                facts = policy.facts(trace.token(layer, t, trace.needed(layer, t)))
                facts = np.concatenate([facts, np.ones((1, trace.neurons))])  # the mean, which no ranking needs
                squares, products = squares + facts @ facts.T, products + facts @ soon[t]
        print(f"{path.name} {np.linalg.solve(squares, products)[:-1].round(3).tolist()}", flush=True)


if __name__ == "__main__":
    main()
