"""The benchmark: real processes, real reads, exact tokens, counts that hold the paper's claims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import flashlite
from flashlite import plots
from flashlite.bench import ladder, tables
from flashlite.bench.cap import Cap
from flashlite.bench.compare import compare
from flashlite.bench.ladder import bench, prompt_ids
from flashlite.bench.process import larger
from flashlite.bench.process.run import WORKER, run_worker
from flashlite.bench.process.task import LOGITS, DenseTask, Setup, StageTask
from flashlite.bench.result import Result
from flashlite.errors import FlashliteError, KilledError
from flashlite.storage.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return flashlite.pack("opt-mini", tmp_path_factory.mktemp("bench") / "store")


@pytest.fixture(scope="module")
def result(store: Store) -> Result:
    return bench(store, stages=range(7), tokens=16, prompt_tokens=32, rounds=1, capped=True)


@pytest.mark.slow
def test_every_stage_gives_the_dense_tokens(result: Result) -> None:
    for stage in result.stages:
        assert stage.tokens_equal
        assert stage.max_logit_error < 1e-3
        assert stage.agreement >= 0.9


@pytest.mark.slow
def test_stages_read_less_and_less(result: Result) -> None:
    nbytes = [stage.bytes_per_token for stage in result.stages]
    reads = [stage.reads_per_token for stage in result.stages]
    assert nbytes[0] >= result.weight_bytes
    assert nbytes[:6] == sorted(nbytes[:6], reverse=True)
    assert nbytes[5] <= 0.05 * nbytes[0]
    assert reads[4] <= 0.51 * reads[3]


@pytest.mark.slow
def test_pool_moves_less_than_rebuilding(result: Result) -> None:
    moved = [stage.rows_moved for stage in result.stages]
    assert moved[5] < 0.25 * moved[4]


@pytest.mark.slow
def test_memory_stays_within_budget_and_base(result: Result) -> None:
    for stage in result.stages:
        assert stage.dram_bytes <= result.budget_bytes
        assert stage.peak_rss_bytes <= result.budget_bytes + result.base.total


@pytest.mark.slow
def test_result_is_shown_and_drawn(result: Result, tmp_path: Path) -> None:
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result
    markdown = tables.ladder_markdown(result)
    assert all(name in markdown for name in ("0 naive", "5 pool", "never passes", "random reads"))
    assert plots.save(plots.ladder(result), tmp_path / "ladder.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_model_larger_than_the_machine_is_compared_with_naive_loading(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which gives the dense model's tokens, read in whichever layout the store has."""
    written = []
    for streamed in (False, True):
        (folder := tmp_path / str(streamed)).mkdir()
        setup = Setup(str(store.path), str(folder), prompt_ids(store, 8), 12)
        assert run_worker(DenseTask(setup, streamed)).streamed == streamed
        written.append(load_file(folder / LOGITS))
    assert torch.equal(written[0]["tokens"], written[1]["tokens"])
    monkeypatch.setattr(larger, "SPARE", 2**60)  # bytes: nothing fits
    result = bench(store, stages=[5], tokens=12, prompt_tokens=8, rounds=1, capped=True)
    assert result.stages[0].tokens_equal
    assert "the dense model doesn't fit this machine" in tables.ladder_markdown(result)
    table = tables.peer_markdown(result)
    assert "flashlite, naive loading" in table
    assert "of naive" in table
    assert "of naive" in tables.peer_table(result).columns
    assert plots.save(plots.ladder(result), tmp_path / "ladder.png").stat().st_size > 10_000


def test_a_model_larger_than_the_machine_is_never_loaded_without_a_limit(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even to see that it is killed under a cap, where the system grants no cap."""
    begun: list[object] = []
    monkeypatch.setattr(ladder, "run_worker", lambda task, command=(): begun.append(task))
    setup = Setup(str(tiny_store.path), "", [1], 8)
    for spare, tried in ((0, True), (2**60, False)):
        monkeypatch.setattr(larger, "SPARE", spare)
        benchmark = ladder._Benchmark(tiny_store, StageTask(setup, 5), {}, [], 1, WORKER)
        benchmark.group = Cap(1)
        benchmark._end_cap()
        assert bool(begun) == tried
        assert benchmark.cap.dense_fits is (True if tried else None)
        begun.clear()


@pytest.mark.slow
def test_a_wrong_stage_shows_an_error_and_no_speed(store: Store, tmp_path: Path) -> None:
    setup = Setup(str(store.path), str(tmp_path), prompt_ids(store, 8), 8)
    run_worker(DenseTask(setup))
    path = tmp_path / LOGITS
    wrong = {name: tensor.clone() for name, tensor in load_file(path).items()}
    wrong["logits"] += 1.0
    save_file(wrong, path)
    with pytest.raises(FlashliteError, match=r"stage 5 .pool. is wrong.*no speed"):
        run_worker(StageTask(setup, 5, check=8))


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(FlashliteError, match="is not a store"):
        run_worker(StageTask(Setup(str(tmp_path / "none"), str(tmp_path), [1], 8), 5))


def test_prompt_has_the_wanted_length(store: Store) -> None:
    assert [len(prompt_ids(store, n)) for n in (1, 32, 500)] == [1, 32, 500]
    with pytest.raises(FlashliteError, match="exceeds"):
        prompt_ids(store, 512)
    assert torch.tensor(prompt_ids(store, 32)).max() < store.config.vocab_size


def test_stages_side_by_side_keep_the_bytes_and_halve_the_reads(store: Store) -> None:
    split, bundled = compare(store, [3, 4], tokens=12)
    assert split.tokens_equal
    assert bundled.tokens_equal
    assert bundled.bytes_per_token == split.bytes_per_token
    assert 0.45 < bundled.reads_per_token / split.reads_per_token < 0.55
    table = tables.gain_markdown([split, bundled])
    assert "| 3 window |" in table
    assert "*4 bundle / 3 window*" in table


@pytest.mark.slow
def test_every_stage_ran_within_the_memory_cap(result: Result) -> None:
    cap = result.memory_cap
    assert cap.bytes == result.budget_bytes + cap.base_bytes
    line = tables.summary_lines(result)[-1]
    assert (f"enforced by {cap.how}" if cap.enforced else "NOT enforced") in line
    if cap.peak_bytes:  # the system counts, so the base is what it counts without a model
        assert cap.peak_bytes <= cap.bytes
        assert not cap.dense_fits, "a cap under which the dense model runs proves nothing"
        assert line.endswith("under it the dense model is killed")


def test_a_worker_that_the_system_kills_is_reported_as_that(store: Store, tmp_path: Path) -> None:
    task = DenseTask(Setup(str(store.path), str(tmp_path), prompt_ids(store, 8), 8))
    with pytest.raises(KilledError, match="ended with code -9: the system killed it because memory ran out"):
        run_worker(task, ["/bin/sh", "-c", "kill -9 $$"])
