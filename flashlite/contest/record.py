"""Recording traces: held-out text and what the model writes after it, seen by the predictors of every layer.

The text is decoded by the dense model, so a trace doesn't depend on any policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flashlite.bench.dense import load_dense
from flashlite.contest.traces import ENDING, Trace, read_trace
from flashlite.engine.model import plan
from flashlite.engine.policies.rules import rounded
from flashlite.engine.predictor import LowRankPredictor
from flashlite.engine.predictor_file import PredictorSet
from flashlite.engine.stages import POOL
from flashlite.errors import FlashliteError
from flashlite.storage.atomic import new_folder
from flashlite.storage.store import Store
from flashlite.storage.tokenizer import first_token, load_tokenizer
from flashlite.training.evaluate import streamed_model

KINDS = ("text", "greedy", "text", "sampled")  # of a recording's traces, in turn
PROMPT = 32  # tokens before the first that is recorded
CANDIDATES = 400  # texts of which the seed chooses
TEMPERATURE, TOP_K = 0.8, 40  # of sampled text


def record(
    store: Store, texts: Iterable[str], seed: int, tokens: int = 160, count: int = len(KINDS),
    dram_budget: str = "60%", say: Callable[[str], None] = lambda line: None,
) -> list[Trace]:  # fmt: skip
    """Traces of a model, the same whenever store, texts, seed and numbers are.

    store: the model, with its trained predictors
    texts: what to choose from
    tokens: of each trace, after PROMPT tokens that aren't recorded
    count: how many traces; their kinds are KINDS, in turn
    dram_budget: says how many neurons of a layer there is room for, as `load` takes it
    say: takes a line before each trace

    Raises FlashliteError if the store has no trained predictor, or if the texts are too short or the model is.
    """
    predictors, budget = PredictorSet.load(store).layers, plan(store, POOL, dram_budget, "trained")[1]
    positions = store.config.max_position_embeddings
    if PROMPT + tokens > positions:
        raise FlashliteError(f"{tokens} tokens after a prompt of {PROMPT} exceed the model's {positions}: record fewer")
    generator = np.random.default_rng(seed)
    passages = _passages(store, texts, generator, PROMPT + tokens, count)
    dense = load_dense(store)
    traces = []
    for i, ids in enumerate(passages):
        kind = KINDS[i % len(KINDS)]
        say(f"trace {i + 1} of {count}: {kind}")
        ids = ids if kind == "text" else _continued(dense, ids[:PROMPT], tokens, kind == "sampled", seed + i)
        scores = _scores(store, predictors, ids)[:, PROMPT:]
        facts = (store.shape.record_bytes, str(store.manifest["name"]), kind, seed)
        traces.append(Trace(scores, budget.layer_rows, tuple(ids), *facts))
    return traces


def _passages(
    store: Store, texts: Iterable[str], generator: np.random.Generator, length: int, count: int
) -> Sequence[list[int]]:
    """Beginnings of `length` tokens, each of another text that the generator chooses."""
    tokenizer, begin = load_tokenizer(store), first_token(store)
    long_enough: list[str] = []
    for text in texts:
        if len(text) > 4 * length:  # characters: a cheap first look
            long_enough.append(text)
        if len(long_enough) == CANDIDATES:
            break
    found: list[list[int]] = []
    for i in generator.permutation(len(long_enough)):
        ids = [*begin, *tokenizer(long_enough[i], add_special_tokens=False)["input_ids"]][:length]
        found += [ids] if len(ids) == length else []
        if len(found) == count:
            return found
    raise FlashliteError(f"{len(found)} texts have {length} tokens, fewer than {count}: give more or longer text")


@torch.no_grad()
def _continued(dense: nn.Module, prompt: list[int], tokens: int, sampled: bool, seed: int) -> list[int]:
    """A prompt with the tokens that the model writes after it."""
    how = {"do_sample": True, "temperature": TEMPERATURE, "top_k": TOP_K} if sampled else {"do_sample": False}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        out = dense.generate(  # type: ignore[operator]
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), num_beams=1,
            max_new_tokens=tokens, min_new_tokens=tokens, eos_token_id=None, **how,
        )  # fmt: skip
    return out[0].tolist()


@torch.no_grad()
def _scores(store: Store, predictors: Sequence[LowRankPredictor], ids: list[int]) -> np.ndarray:
    """What the predictors say of a text: [layers, tokens, neurons] int8. ids: the text's tokens."""
    model, seen = streamed_model(store), {}

    def see(layer: int, x: Tensor) -> None:
        scores = predictors[layer].scores(x).float().numpy()
        seen[layer] = np.stack([rounded(token) for token in scores])

    for i, ffn in enumerate(model.flash.ffns):
        ffn.register_forward_pre_hook(lambda module, args, i=i: see(i, args[0]))
    model(torch.tensor([ids]))
    return np.stack([seen[i] for i in range(store.layers)])


def write_traces(traces: Sequence[Trace], folder: Path) -> list[Path]:
    """Write traces into a new folder that appears only when complete. Raises FlashliteError."""
    with new_folder(folder) as unfinished:
        for i, trace in enumerate(traces):
            path = unfinished / f"{i + 1:02d}-{trace.kind}{ENDING}"
            trace.save(path)
            read_trace(path)
    return sorted(folder.iterdir())
