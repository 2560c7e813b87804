"""The command that writes text: run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from flashlite.arguments import parse_window, stage_number
from flashlite.cli.checks import check_exercises, check_policy, check_stages
from flashlite.cli.options import (
    BudgetOption,
    DeviceOption,
    DtypeOption,
    ImplOption,
    ModelArgument,
    PredictorOption,
    RevisionOption,
    StageOption,
    VerifyOption,
    WindowOption,
    open_store,
)  # fmt: skip
from flashlite.cli.prompt import DEFAULT, read_prompt
from flashlite.cli.unsolved import check_solved, of_stages
from flashlite.course import plug
from flashlite.engine.kernels.waiting import waiting_briefly


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(run)


def run(
    model: ModelArgument = "opt-mini",
    prompt: Annotated[
        str | None,
        typer.Option(
            help="text to continue, or - for standard input; an empty one begins a new text", show_default=DEFAULT
        ),
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="a file with the text to continue, in UTF-8")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="fewer where the model's positions end", min=1)] = 64,
    stage: StageOption = "5",
    dram_budget: BudgetOption = "50%",
    predictor: PredictorOption = "auto",
    window: WindowOption = "5",
    dtype: DtypeOption = None,
    revision: RevisionOption = None,
    verify_reads: VerifyOption = False,
    device: DeviceOption = "cpu",
    impl: ImplOption = "ref",
) -> None:
    """Continue a prompt, token by token, with the weights on flash.

    A prompt may hold any valid Unicode; one that isn't UTF-8 or fills the model's positions is refused. A file and
    standard input are taken as they are, with the end of the last line. With --impl the code of exercises runs as any
    program of yours, without the limits that grading sets.
    """
    os.environ.update(waiting_briefly(os.environ))
    tokens, number = parse_window(window), stage_number(stage)
    check_policy(impl, [number])
    check_solved(impl, of_stages([number], dtype))
    text = read_prompt(prompt, prompt_file)
    plugged = plug.plug_in(impl, model, dtype, revision)
    import torch
    from transformers import TextStreamer

    from flashlite.bench.compare import check_stage
    from flashlite.engine.device.place import place_of
    from flashlite.engine.model import load
    from flashlite.storage.tokenizer import encode, load_tokenizer, settings_named, tokenizer_in

    place = place_of(device)  # before anything is packed
    place.check_dtype(dtype)
    store = open_store(plugged.model, dtype, plugged.revision, tokenizer_in)
    check_exercises(store, plugged)
    tokenizer = load_tokenizer(store)
    ids = encode(tokenizer, text, store).to(place.device)
    if plugged.plugs:
        check_stages(store, [number], dram_budget, predictor, tokens)
        check_stage(store, number, dram_budget, tokens, plugged.command("flashlite.bench.measure_one"))
    positions = store.config.max_position_embeddings
    longest = positions - ids.shape[1]
    flash_model = load(
        store, dram_budget=dram_budget, stage=number, predictor=predictor, window=tokens, verify_reads=verify_reads,
        device=device,
    )  # fmt: skip
    streamer = TextStreamer(tokenizer)
    try:
        with settings_named(store):
            written = flash_model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=min(max_new_tokens, longest), do_sample=False,
                num_beams=1, streamer=streamer,
            )  # fmt: skip
    except BaseException:
        streamer.end()  # which shows the last word too
        raise
    if written.shape[1] == positions and max_new_tokens > longest:
        print(f"[the text fills all {positions} positions of the model]")
    print(flash_model.flash)
    plugged.show_calls()
