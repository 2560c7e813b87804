"""What a model is, in tables and lines: its predictors, its zeros, and what was planted in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flashlite.bench.tables.table import Table

if TYPE_CHECKING:  # so that tables need no torch
    from flashlite.engine.predictor_file import LayerReport
    from flashlite.training.evaluate import Evaluation
    from flashlite.training.relufy import Relufied
    from flashlite.training.train_model import Point


def predictor_table(reports: list[LayerReport]) -> Table:
    """How good each layer's predictor is on held-out text."""
    rows = []
    for i, r in enumerate(reports):
        ratio = r.predicted / r.active if r.active else 0.0
        shares = (f"{share:.2%}" for share in (r.recall, r.false_negatives, r.false_positives))
        rows.append([str(i), str(r.rank or "-"), f"{r.active:.2%}", f"{r.predicted:.2%}", f"{ratio:.2f}", *shares])
    columns = "layer", "rank", "active", "predicted", "ratio", "recall", "false negatives", "false positives"
    return Table(columns, rows)


def calibrated_line(before: Evaluation, now: Evaluation, layer_bytes: int) -> str:
    """One line: what other thresholds save and cost, on the same text. layer_bytes: of all neurons of a layer."""
    old, new = (sum(layer.predicted for layer in result.layers) * layer_bytes / 1e6 for result in (before, now))
    worse = now.predicted_perplexity / now.dense_perplexity - 1
    return (
        f"on {now.tokens} tokens that decided nothing: {new:.2f} MB of predicted neurons a token instead of {old:.2f}, "
        f"perplexity {now.predicted_perplexity:.4f} instead of {before.predicted_perplexity:.4f}, dense "
        f"{now.dense_perplexity:.4f} ({worse:+.2%})"
    )


def planted_line(planted: dict[str, Any]) -> str:
    """What a planted model reached, as shares of the FFN."""
    share = {name: f"{planted[name]:.2%}" for name in ("active", "predicted", "recall", "new", "resident", "ahead")}
    return (
        f"for a token {share['active']} of the FFN fire, {share['predicted']} are predicted, recall {share['recall']}; "
        f"with a window of {planted['window']} {share['new']} are read and {share['resident']} resident; "
        f"{share['ahead']} of what a layer is predicted to need is told by the input of the layer before"
    )


def zeros_table(log: Sequence[Point]) -> Table:
    """The share of zeros in each layer of a relufied model, before and after it was trained on."""
    before, after = log[0].zeros, log[-1].zeros
    rows = [[str(i), f"{b:.2%}", f"{a:.2%}"] for i, (b, a) in enumerate(zip(before, after, strict=True))]
    mean = ["mean", *(f"{sum(zeros) / len(zeros):.2%}" for zeros in (before, after))]
    return Table(("layer", "zeros before", "zeros after"), [*rows, mean])


def relufied_line(result: Relufied) -> str:
    """One line: held-out perplexity as the model was born, with ReLU, and trained on."""
    born, before, after = (point.perplexity for point in (result.born, result.log[0], result.log[-1]))
    replaced = f", {before:.3f} with relu" if result.born.zeros != result.log[0].zeros else ""
    return (
        f"held-out perplexity: {born:.3f} with {result.activation}{replaced}, {after:.3f} after "
        f"{result.log[-1].step} steps ({after / born - 1:+.2%} of the born model's)"
    )
