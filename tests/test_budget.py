"""Budgets: how they are written, how they are split, and that the smallest one named is the smallest that works."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from conftest import make_model, save_checkpoint
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from transformers import OPTForCausalLM

import flashlite
from flashlite.bench.decoding import greedy
from flashlite.drive import flash
from flashlite.engine.budget import (
    FEWEST_ROWS,
    Budget,
    Candidate,
    choose_predictors,
    longest_window,
    parse_budget,
    plan_budget,
    split_rows,
)  # fmt: skip
from flashlite.engine.resident import ResidentWeights
from flashlite.engine.stages import LADDER, Stage
from flashlite.errors import BudgetError, FlashliteError
from flashlite.storage.store import Store

PROMPT = [2, 17, 5, 99, 40]
STAGES = pytest.mark.parametrize("name", LADDER)
ANY_TIME = settings(deadline=None)  # this computer may be busy
NEEDS = st.lists(st.floats(0.0, 1e5), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def dense_tokens(tiny_model: OPTForCausalLM) -> list[int]:
    return greedy(tiny_model, PROMPT, 6)[0]


@pytest.fixture(scope="module")
def deep_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """As many layers as OPT-1.3B has, each of them tiny."""
    folder = tmp_path_factory.mktemp("deep")
    model = make_model(num_hidden_layers=24, hidden_size=32, word_embed_proj_dim=32, ffn_dim=640)
    return flashlite.pack(save_checkpoint(model, folder / "checkpoint"), folder / "store")


def smallest_budget(store: Store, stage: Stage) -> int:
    """The smallest budget, as the error names it."""
    with pytest.raises(BudgetError) as error:
        plan_budget(store, stage, 0, 0, [1.0] * store.layers)
    found = re.search(r"the smallest that works is (\d+) bytes", str(error.value))
    assert found
    return int(found[1])


def spent(plan: Budget, store: Store, stage: Stage) -> int:
    """Bytes that a plan adds up to."""
    rows = sum(plan.layer_rows) + stage.memory.spare * max(plan.layer_rows, default=0)
    return plan.resident + plan.predictors + plan.buffers + rows * store.shape.record_bytes


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        (12345, 12345), ("12345", 12345), ("12345b", 12345), ("2kb", 2000), ("3MB", 3_000_000), ("1GB", 10**9),
        ("2KiB", 2048), ("1.5 MiB", 3 * 2**19), (" 4GiB ", 2**32), ("50%", 500), ("12.5 %", 125), ("100%", 1000),
        ("150%", 1500), ("0", 0),
    ],
)  # fmt: skip
def test_budget_is_read_in_every_form(text: int | str, nbytes: int) -> None:
    assert parse_budget(text, weight_bytes=1000) == nbytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "%",
        "GiB",
        "half",
        "-1",
        "-5%",
        "4g",
        "4ib",
        "4TiB",
        "1e9",
        "1,5GB",
        "nan",
        ".5GiB",
        "5%%",
        "9" * 400,
        True,
    ],
)
def test_malformed_budget_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(BudgetError, match="is not understood: write bytes") as error:
        parse_budget(text, weight_bytes=1000)
    assert "\n" not in str(error.value)


@ANY_TIME
@given(needs=NEEDS, neurons=st.integers(1, 5000), spare=st.integers(0, 2), extra=st.integers(0, 100_000))
@example(needs=[0.0, 0.0], neurons=100, spare=2, extra=3)
def test_split_stays_within_total_and_bounds(needs: list[float], neurons: int, spare: int, extra: int) -> None:
    fewest = min(FEWEST_ROWS, neurons)
    total = fewest * (len(needs) + spare) + extra
    rows = split_rows(total, needs, neurons, spare)
    assert len(rows) == len(needs)
    assert sum(rows) + spare * max(rows) <= total
    assert all(fewest <= row <= neurons for row in rows)


@ANY_TIME
@given(needs=NEEDS, neurons=st.integers(1, 5000), spare=st.integers(0, 2), total=st.integers(1000, 200_000))
def test_split_gives_no_layer_less_than_one_of_smaller_need(
    needs: list[float], neurons: int, spare: int, total: int
) -> None:
    rows = split_rows(total, needs, neurons, spare)
    by_need = [row for _, row in sorted(zip(needs, rows, strict=True))]
    assert by_need == sorted(by_need)


@ANY_TIME
@given(
    needs=st.lists(st.floats(1.0, 1e3), min_size=1, max_size=30), neurons=st.integers(100, 5000),
    spare=st.integers(0, 2), total=st.integers(1000, 200_000),
)  # fmt: skip
def test_split_leaves_rows_over_only_when_every_layer_is_full(
    needs: list[float], neurons: int, spare: int, total: int
) -> None:
    rows = split_rows(total, needs, neurons, spare)
    one_more_each = sum(rows) + len(rows) + spare * (max(rows) + 1)
    assume(one_more_each < total)
    assert set(rows) == {neurons}


CANDIDATES = st.builds(
    Candidate,
    st.integers(0, 3000),
    st.lists(st.integers(0, 20), min_size=4, max_size=4).map(lambda new: tuple(itertools.accumulate(new))),
)


@ANY_TIME
@given(
    layers=st.lists(st.lists(CANDIDATES, min_size=1, max_size=3), min_size=1, max_size=4), room=st.integers(0, 20_000)
)
def test_no_other_choice_of_predictors_and_window_reads_less(layers: list[list[Candidate]], room: int) -> None:
    def cost(chosen: tuple[Candidate, ...], k: int) -> float:
        return sum(c.nbytes + 100 * c.window_rows[k - 1] for c in chosen)

    def read(chosen: tuple[Candidate, ...], k: int) -> float:
        return sum(c.window_rows[k] - c.window_rows[k - 1] for c in chosen)

    window, places = choose_predictors(layers, room, 100)
    found = tuple(layer[i] for layer, i in zip(layers, places, strict=True))
    fitting = [(c, k) for c in itertools.product(*layers) for k in (1, 2, 3) if cost(c, k) <= room]
    if fitting:
        assert cost(found, window) <= room
        assert read(found, window) == min(read(c, k) for c, k in fitting)
    else:
        assert window == 1
        assert cost(found, 1) == min(cost(c, 1) for c in itertools.product(*layers))


@STAGES
@ANY_TIME
@given(extra=st.integers(0, 3_000_000))
@example(extra=0)
def test_plan_never_exceeds_the_budget(name: str, extra: int, deep_store: Store) -> None:
    stage = LADDER[name]
    total = smallest_budget(deep_store, stage) + extra
    plan = plan_budget(deep_store, stage, total, 0, [1.0 + i for i in range(deep_store.layers)])
    assert plan.total == total
    assert spent(plan, deep_store, stage) <= total
    assert plan.stream_rows >= min(FEWEST_ROWS, deep_store.shape.neurons)
    assert len(plan.layer_rows) == (deep_store.layers if stage.predictor else 0)


def test_predictors_are_paid_out_of_the_budget(tiny_store: Store) -> None:
    needs = [1.0] * tiny_store.layers
    without = plan_budget(tiny_store, LADDER["pool"], "90%", 0, needs)
    with_them = plan_budget(tiny_store, LADDER["pool"], "90%", 50_000, needs)
    assert with_them.predictors == 50_000
    assert sum(with_them.layer_rows) < sum(without.layer_rows)
    assert spent(with_them, tiny_store, LADDER["pool"]) <= with_them.total


def test_predictors_raise_the_smallest_budget_by_what_they_take(tiny_store: Store) -> None:
    needs, enough = [1.0] * tiny_store.layers, smallest_budget(tiny_store, LADDER["pool"]) + 50_000
    assert spent(plan_budget(tiny_store, LADDER["pool"], enough, 50_000, needs), tiny_store, LADDER["pool"]) <= enough
    with pytest.raises(BudgetError, match=f"smallest that works is {enough} bytes"):
        plan_budget(tiny_store, LADDER["pool"], enough - 1, 50_000, needs)


@pytest.mark.parametrize("grid", [512, 4096])
@pytest.mark.parametrize("persistent", [True, False])
def test_resident_weights_take_no_more_than_planned(
    persistent: bool, grid: int, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash, "direct_alignment", lambda path: grid)
    planned = ResidentWeights.bytes_needed(tiny_store, persistent)
    assert 0 < ResidentWeights(tiny_store, persistent).nbytes <= planned


@STAGES
def test_smallest_budget_named_gives_the_dense_tokens(name: str, tiny_store: Store, dense_tokens: list[int]) -> None:
    smallest = smallest_budget(tiny_store, LADDER[name])
    model = flashlite.load(tiny_store, dram_budget=smallest, stage=name, predictor="oracle")
    assert greedy(model, PROMPT, 6)[0] == dense_tokens


@STAGES
def test_one_byte_below_the_smallest_budget_is_refused(name: str, tiny_store: Store) -> None:
    smallest = smallest_budget(tiny_store, LADDER[name])
    with pytest.raises(BudgetError, match=f"smallest that works is {smallest} bytes") as error:
        flashlite.load(tiny_store, dram_budget=smallest - 1, stage=name, predictor="oracle")
    assert "\n" not in str(error.value)


def test_smallest_budget_counts_the_trained_predictors(tiny_store: Store) -> None:
    with pytest.raises(BudgetError) as error:
        flashlite.load(tiny_store, dram_budget="1%")
    found = re.search(r"the smallest that works is (\d+) bytes", str(error.value))
    assert found
    model = flashlite.load(tiny_store, dram_budget=int(found[1]))
    assert model.flash.budget.predictors > 0
    assert len(greedy(model, PROMPT, 2)[0]) == 2


@pytest.mark.parametrize("name", ["window", "pool", "overlap"])
@pytest.mark.parametrize("percent", [65, 75, 90, 120, 200])
def test_a_window_is_as_long_as_the_budget_has_room_for(name: str, percent: int, tiny_store: Store) -> None:
    """add_predictor's reports say that k tokens use 20 k neurons of each of three layers."""
    model = flashlite.load(tiny_store, dram_budget=f"{percent}%", stage=name, window="auto")
    chosen, budget, spare = model.flash.stage.window, model.flash.budget, LADDER[name].memory.spare
    copies = tiny_store.layers + spare
    assert sum(budget.layer_rows) + spare * max(budget.layer_rows) <= budget.rows
    assert chosen == max(1, sum(copies * 20 * k <= budget.rows for k in range(1, 9)))
    if chosen > 1:
        assert min(budget.layer_rows) >= 20 * chosen - 2


def test_budgets_differ_in_the_window_that_they_have_room_for(tiny_store: Store) -> None:
    windows = [longest_window(tiny_store, LADDER["pool"], f"{percent}%") for percent in range(62, 152, 5)]
    assert windows == sorted(windows)
    assert windows[0] == 1
    assert windows[-1] == 8
    assert len(set(windows)) > 4


def test_a_window_that_the_budget_chose_gives_the_dense_tokens(tiny_store: Store, dense_tokens: list[int]) -> None:
    model = flashlite.load(tiny_store, dram_budget="100%", window="auto", predictor="oracle")
    assert model.flash.stage.window > 1
    assert greedy(model, PROMPT, 6)[0] == dense_tokens


def test_a_window_without_a_report_to_choose_by_or_of_another_word_is_refused(
    tiny_checkpoint: Path, tiny_store: Store, tmp_path: Path
) -> None:
    with pytest.raises(FlashliteError, match="a window of longest tokens is not understood"):
        flashlite.load(tiny_store, window="longest")
    untrained = flashlite.pack(tiny_checkpoint, tmp_path / "store")
    with pytest.raises(FlashliteError, match="has no predictor"):
        flashlite.load(untrained, window="auto", predictor="oracle")
