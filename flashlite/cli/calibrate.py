"""The command that sets the thresholds of a store's predictors anew: calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flashlite.cli import checks, unsolved
from flashlite.cli.options import ImplOption, StoreArgument, TextOption, show_progress, show_table
from flashlite.course import plug
from flashlite.errors import FlashliteError


def calibrate(
    context: typer.Context,
    store: StoreArgument,
    text: TextOption,
    loss_budget: Annotated[float, typer.Option(help="most that a token may lose, in nats", min=1e-5, max=10.0)] = 0.01,
    tokens: Annotated[int, typer.Option(help="most tokens to read", min=1)] = 16_384,
    out: Annotated[Path | None, typer.Option(help="the file to write in place of the store's own predictor")] = None,
    impl: ImplOption = "ref",
) -> None:
    """Give each layer's trained predictor the threshold with which tokens read the least for a small loss.

    Half of the text decides, the other half says what came of it. What exercises choose goes to --out, never into a
    store that the engine's own code packed.
    """
    texts, target = [*text, *map(Path, context.args)], out or store / "predictor.safetensors"
    checks.check_texts(texts)
    checks.check_file(target, str(target))
    unsolved.check_solved(impl, unsolved.CALIBRATE)
    plugged = plug.plug_in(impl)
    from flashlite.bench import tables
    from flashlite.engine.predictor_file import PredictorSet
    from flashlite.storage.find import check_apart
    from flashlite.storage.store import Store
    from flashlite.storage.tokenizer import read_files, token_windows
    from flashlite.training.evaluate import judge
    from flashlite.training.thresholds import set_thresholds

    if plugged.plugs:
        check_apart(target)
    opened = Store(store)
    trained, windows = PredictorSet.load(opened), token_windows(read_files(texts), opened, tokens)
    if len(windows) < 2:
        raise FlashliteError(f"{windows.numel()} tokens are too few to decide and to measure: give more text")
    layers = set_thresholds(opened, trained.layers, windows[::2], loss_budget, show_progress)
    before, now = (judge(opened, windows[1::2], of) for of in (trained.layers, layers))
    PredictorSet(layers, now.layers, trained.up_projections).save(target)
    show_table(tables.predictor_table(list(now.layers)))
    print(tables.calibrated_line(before, now, opened.shape.neurons * opened.shape.record_bytes))
    plugged.show_calls()
