"""What people use today, on the same weights; and models and drives that are not at hand."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import OPTForCausalLM
from typer.testing import CliRunner

import flashlite
from flashlite import plots
from flashlite.bench import cost, tables
from flashlite.bench.decoding import forced
from flashlite.bench.dense import load_dense, published_tensors
from flashlite.bench.estimate import Sparsity, count_work, estimate
from flashlite.bench.ladder import bench
from flashlite.bench.peers import PEERS, ctranslate, missing_of, peers_of, too_large
from flashlite.bench.peers.checkpoint import export
from flashlite.bench.peers.run import run_peer
from flashlite.bench.process import larger
from flashlite.bench.process.run import run_worker
from flashlite.bench.process.task import PeerTask, Setup
from flashlite.bench.result import Result, median_peer
from flashlite.bench.row import PeerCost, PeerRow
from flashlite.cli.main import app
from flashlite.drive import published as drives
from flashlite.engine.stages import NAMES
from flashlite.errors import FlashliteError, StoreError
from flashlite.families import published
from flashlite.families.configured import read_config
from flashlite.families.known import family_of
from flashlite.storage.bundle import FFNShape
from flashlite.storage.checkpoint import Checkpoint
from flashlite.storage.hub import BUNDLED
from flashlite.storage.store import Store
from flashlite.training.planted import PlantedModel, write_planted
from flashlite.training.planted_figures import figures_of

IDS = list(range(5, 21))
EXACT = [name for name, peer in PEERS.items() if not peer.int8_alone]
HERE = torch.device("cpu")


@pytest.fixture(scope="module")
def exported(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_store, tmp_path_factory.mktemp("exported") / "checkpoint")


def test_an_exported_checkpoint_is_the_one_that_was_packed(
    exported: Path, tiny_store: Store, tiny_checkpoint: Path
) -> None:
    again, original = Checkpoint(exported), Checkpoint(tiny_checkpoint)
    assert again.names == original.names
    for name in original.names:
        assert torch.equal(again.tensor(name), original.tensor(name)), name
    with pytest.raises(StoreError, match="exists already"):
        export(tiny_store, exported)


@pytest.mark.parametrize("name", EXACT)
def test_a_peer_is_the_dense_model(name: str, tiny_store: Store, exported: Path, tiny_model: OPTForCausalLM) -> None:
    model = PEERS[name].load(tiny_store, exported, HERE)
    torch.testing.assert_close(forced(model, IDS, IDS).logits, forced(tiny_model, IDS, IDS).logits)
    offloaded = {name for name, parameter in model.named_parameters() if parameter.device.type == "meta"}
    kinds = {"FFN": {"fc1", "fc2"}, "layers": {"fc1", "fc2", "q_proj", "final_layer_norm"}}
    expected = kinds.get(name.split(",")[-1].split()[0], set())
    assert expected <= {parameter.split(".")[-2] for parameter in offloaded}
    assert bool(expected) == bool(offloaded)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Store, Path]]:
    """A small planted model of a family, and what is exported of it; made once."""

    @cache
    def make(name: str) -> tuple[Store, Path]:
        sizes = {"ffn_hidden_size" if name == "falcon-7b" else "intermediate_size": 192, "vocab_size": 4096}
        content = published.PUBLISHED[name] | sizes | {
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2,
            "partial_rotary_factor": 0.5,
        }  # fmt: skip
        model = PlantedModel(read_config(content, family_of(content)), figures_of(name))
        store = write_planted(model, name, tmp_path_factory.mktemp("planted") / name, "fp32")
        return store, export(store, store.path.with_name("checkpoint"))

    return make


@pytest.mark.parametrize("peer", EXACT)
@pytest.mark.parametrize("name", published.PUBLISHED)
def test_peers_run_every_family(name: str, peer: str, planted: Callable[[str], tuple[Store, Path]]) -> None:
    store, checkpoint = planted(name)
    model = PEERS[peer].load(store, checkpoint, HERE)
    torch.testing.assert_close(forced(model, IDS, IDS).logits, forced(load_dense(store), IDS, IDS).logits)
    offloaded = {name for name, parameter in model.named_parameters() if parameter.device.type == "meta"}
    matrices = {pattern.format(i) for pattern in store.family.matrices for i in range(store.layers)}
    assert (matrices <= offloaded) == (peer != "memory-mapped safetensors")
    assert store.family.embedding_weight not in offloaded


@pytest.mark.slow
def test_peers_of_a_falcon_are_measured(tmp_path: Path) -> None:
    store = flashlite.pack("falcon-mini", tmp_path / "store")
    found = bench(store, stages=[5], tokens=8, check_tokens=4, rounds=1, prompt_tokens=8, peers=True, budget="75%")
    assert [row.name for row in found.peers] == EXACT
    assert all(row.cost is not None and row.cost.tokens_equal for row in found.peers)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return flashlite.pack("opt-mini", tmp_path_factory.mktemp("peers") / "store")


@pytest.fixture(scope="module")
def result(mini: Store) -> Result:
    found = bench(mini, stages=[1, 6], tokens=12, slow_tokens=8, check_tokens=8, rounds=1, peers=True)
    assert sorted(path.name for path in mini.path.parent.iterdir()) == ["store"]  # the checkpoint is gone
    return found


@pytest.mark.slow
def test_peers_are_measured_and_must_be_exact(result: Result, tmp_path: Path) -> None:
    assert [row.name for row in result.peers] == EXACT
    for row in result.peers:
        assert row.cost is not None
        assert row.cost.tokens_equal
        assert row.cost.total_ms > 0
    text = tables.peer_markdown(result)
    assert all(name in text for name in (*EXACT, "flashlite, 6 overlap", "in DRAM, no cap"))
    assert plots.save(plots.peers(result), tmp_path / "peers.png").stat().st_size > 10_000


@pytest.mark.slow
def test_slow_stages_take_fewer_tokens(result: Result) -> None:
    resident, overlap = result.stages
    assert (resident.tokens, overlap.tokens) == (8 - 1 - 4, 12 - 1 - 4)
    assert 0 < overlap.wasted_bytes < overlap.prefetched_bytes < overlap.bytes_per_token
    assert "for nothing" in "".join(tables.summary_lines(result))


@pytest.mark.slow
def test_a_peer_that_runs_out_of_memory_is_reported_as_that(result: Result, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    task = PeerTask(Setup("none", str(tmp_path), [1], 8), "accelerate, layers on disk")
    row = run_peer(task, ["/bin/sh", "-c", "kill -9 $$"])
    assert row.to_json() == {"name": "accelerate, layers on disk", "killed": True}
    assert PeerRow.from_json(row.to_json()) == row
    killed = replace(result, peers=[row])
    assert "| accelerate, layers on disk | ✗ killed | – |" in tables.peer_markdown(killed)
    assert plots.save(plots.peers(killed), tmp_path / "killed.png").exists()


def test_a_peer_with_wrong_logits_shows_no_speed(tiny_store: Store, tmp_path: Path) -> None:
    task = PeerTask(Setup(str(tiny_store.path), str(tmp_path), IDS, 8), "memory-mapped safetensors")
    export(tiny_store, tmp_path / "checkpoint")
    save_file(
        {"logits": torch.zeros(8, 128), "tokens": torch.zeros(8, dtype=torch.long)}, tmp_path / "logits.safetensors"
    )
    with pytest.raises(FlashliteError, match=r"memory-mapped safetensors is wrong.*no speed"):
        run_worker(task)


def test_a_peer_that_is_not_installed_is_said_before_anything_is_measured(
    mini: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FlashliteError, match="accelerate, which is not installed"):
        bench(mini, stages=[5], peers=True, tokens=8, prompt_tokens=8)


# In int8


@pytest.fixture(scope="module")
def rounded(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    store = flashlite.pack(tiny_checkpoint, tmp_path_factory.mktemp("rounded") / "store", "int8")
    return store, export(store, store.path.with_name("checkpoint"))


def test_a_checkpoint_of_int8_is_bf16(rounded: tuple[Store, Path]) -> None:
    store, exported = rounded
    with safe_open(exported / "model.safetensors", "pt") as file:
        for name, weights in published_tensors(store):
            assert torch.equal(file.get_tensor(name), weights.bfloat16()), name
    assert json.loads((exported / "config.json").read_text())["dtype"] == "bfloat16"


def test_ctranslate2_computes_what_these_weights_say(rounded: tuple[Store, Path]) -> None:
    """As far as its own rounding allows: logits correlate, and where the dense model is sure it chooses the same."""
    pytest.importorskip("ctranslate2")
    store, exported = rounded
    ctranslate.convert(exported)
    ctranslate.convert(exported)  # nothing to do
    wanted = forced(load_dense(store), IDS, IDS).logits
    found = ctranslate.decode(ctranslate.load(store, exported, HERE), IDS, IDS)
    assert len(found.token_ms) == len(IDS) - 1
    assert found.logits.shape == wanted.shape
    assert float(torch.corrcoef(torch.stack([found.logits.flatten(), wanted.flatten()]))[0, 1]) > 0.99


def test_ctranslate2_says_what_it_can_not_convert(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    with pytest.raises(FlashliteError, match="CTranslate2 doesn't convert this model: "):
        ctranslate.convert(tmp_path)


@pytest.mark.slow
def test_peers_of_int8_take_turns_with_the_stages(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    store, lines = flashlite.pack("opt-mini", tmp_path / "store", "int8"), []
    found = bench(
        store, stages=[5], tokens=12, slow_tokens=8, rounds=2, peers=True, budget="70%", progress=lines.append
    )
    assert [row.name for row in found.peers] == list(PEERS)
    for row in found.peers:
        assert row.cost is not None
        assert row.cost.max_logit_error < 1.0
        assert row.cost.agreement >= 0.75, "of 8 tokens, two may be as likely as others"
    order = [line for line in lines if "round" in line]
    assert ["stage" in line for line in order] == [True, False, False, False, False, True]
    assert "flashlite, all in DRAM, no cap" in tables.peer_markdown(found)


def test_what_is_not_installed_is_not_measured(
    rounded: tuple[Store, Path], tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert peers_of(tiny_store, "cpu") == EXACT
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "ctranslate2" or None)
    assert missing_of(rounded[0], "cpu") == ["ctranslate2"]
    assert missing_of(tiny_store, "cpu") == []
    assert [name for name in peers_of(rounded[0], "cpu") if "CTranslate2" in name] == []


def test_peers_that_would_take_the_whole_machines_memory_are_not_measured(
    rounded: tuple[Store, Path], tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing limits what has all weights in DRAM, or makes it."""
    assert too_large(rounded[0], "cpu") == []
    monkeypatch.setattr(larger, "SPARE", 2**60)  # bytes: nothing fits
    assert too_large(rounded[0], "cpu") == [name for name in PEERS if name not in EXACT]
    assert peers_of(rounded[0], "cpu") == peers_of(tiny_store, "cpu") == EXACT
    assert too_large(tiny_store, "cpu") == []


def test_the_row_of_a_peer_is_that_of_median_time() -> None:
    rows = [
        PeerRow("peer", PeerCost(True, 0.0, prompt_ms=1, total_ms=ms, bytes_per_token=0, peak_rss_bytes=1))
        for ms in (7.0, 3.0, 5.0)
    ]
    assert median_peer(rows) == rows[2]
    assert median_peer([*rows, PeerRow("peer", None)]) == PeerRow("peer", None)


# Drives and models that are not at hand


@pytest.mark.parametrize("drive", drives.DRIVES, ids=lambda drive: drive.kind)
def test_published_drives(drive: drives.Drive) -> None:
    """A curve goes through the published figures, rises with size and depth, and stays below the sequential rate."""
    curve = drive.curve()
    for depth, iops in drive.iops.items():
        assert curve.rate(4096, depth) == pytest.approx(4096 * iops, rel=0.01)
        assert curve.rate(2048, depth) == pytest.approx(2048 * iops, rel=0.01), "half the bytes, the same reads"
    rates = np.array(curve.mb_s)
    assert (np.diff(rates, axis=0) > 0).all()
    assert (np.diff(rates, axis=1) >= 0).all()
    assert rates.max() < drive.sequential_mb_s
    assert drive.source
    assert drive.url.startswith("http")
    assert drives.find_drive(drive.name) == drive


def test_a_drive_that_nobody_published_is_refused() -> None:
    with pytest.raises(FlashliteError, match=r"no published drive is called 'floppy': choose one of SD card"):
        drives.find_drive("floppy")
    with pytest.raises(FlashliteError, match="3 published drives are called 'nvme'"):
        drives.find_drive("nvme")


@pytest.mark.slow
def test_counted_work_is_what_the_engine_does(result: Result) -> None:
    """Where no neuron is left out, counts without running are those of the engine."""
    shape, layers = FFNShape(2048, 512, 4, 512), 6  # of opt-mini
    works = count_work(shape, layers, result.weight_bytes - layers * shape.layer_bytes, Sparsity())
    assert list(works) == list(NAMES)
    measured = result.stages[0]
    assert works["resident"].bytes == measured.bytes_per_token
    assert works["resident"].reads == measured.reads_per_token
    assert works["naive"].bytes == result.weight_bytes
    assert works["window"].reads == 2 * works["bundle"].reads == 2 * works["pool"].reads
    assert works["pool"].copied_bytes == 0 < works["bundle"].copied_bytes
    assert works["overlap"].bytes == pytest.approx(1.25 * works["pool"].bytes)


def test_published_shares_of_opt_6_7b() -> None:
    """The paper's table 2 in 16 bits: 13.4 GB naive, 6.7 less without attention, 0.2 with the window."""
    works = count_work(FFNShape(16384, 4096, 2, 512), 32, 4_723_000_000, Sparsity())
    assert works["naive"].bytes == pytest.approx(13.3e9, rel=0.02)
    assert works["pool"].bytes == pytest.approx(0.206e9, rel=0.02)


def test_estimate_is_faster_on_faster_drives_and_from_stage_to_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "SAMPLE_BYTES", 2**22)
    slow, fast = drives.find_drive("SATA"), drives.find_drive("PCIe 4")
    result = estimate("opt-125m", {"slow": slow.curve(), "fast": fast.curve()}, "fp32")
    for stage in NAMES:
        assert result["drives"]["fast"][stage] < result["drives"]["slow"][stage]
    times = result["drives"]["slow"]
    assert (
        times["naive"] > times["resident"] > times["predictor"] > times["window"] > times["bundle"] > times["overlap"]
    )
    for name, dtype in (("opt-7b", "fp32"), ("opt-125m", "fp8")):
        with pytest.raises(FlashliteError):
            estimate(name, {}, dtype)


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_estimate_knows_every_model_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "SAMPLE_BYTES", 2**22)
    result, figures = estimate(name, {"drive": drives.find_drive("SATA").curve()}), figures_of(name)
    billions = {"falcon-7b": 7.217, "llama-2-7b": 6.738, "persimmon-8b": 9.397, "phi-2": 2.780}
    assert result["weight_bytes"] / 2e9 == pytest.approx(billions[name], abs=0.001)
    streamed = {"falcon-7b": 10.571e9, "llama-2-7b": 8.657e9, "persimmon-8b": 9.664e9, "phi-2": 3.355e9}[name]
    assert result["bytes_per_token"]["resident"] == pytest.approx(streamed, rel=1e-3)
    assert result["bytes_per_token"]["window"] == pytest.approx(figures.new * streamed, rel=1e-3)
    assert result["sparsity"]["active"] == pytest.approx(figures.mean)
    waste = result["bytes_per_token"]["overlap"] / result["bytes_per_token"]["pool"]
    assert waste == pytest.approx(1.0 if name in ("falcon-7b", "phi-2") else 1.25)


@pytest.mark.parametrize("name", ["opt-mini", "falcon-mini"])
def test_estimate_takes_what_was_measured_of_a_model_that_comes_along(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "SAMPLE_BYTES", 2**22)
    result = estimate(name, {"drive": drives.find_drive("SATA").curve()}, "fp32")
    with safe_open(BUNDLED[name] / "predictor.safetensors", "pt") as file:
        layers = json.loads(file.metadata()["reports"])
    config = json.loads((BUNDLED[name] / "config.json").read_text())
    neurons, width = config.get("ffn_dim") or config["ffn_hidden_size"], config["hidden_size"]

    def mean(of: Callable[[dict[str, Any]], float]) -> float:
        return sum(map(of, layers)) / len(layers)

    found = result["sparsity"]
    assert found["active"] == pytest.approx(mean(lambda layer: layer["active"]))
    assert found["predicted"] == pytest.approx(mean(lambda layer: layer["predicted"]))
    assert found["resident"] == pytest.approx(mean(lambda layer: layer["window_rows"][4]) / neurons)
    fresh = mean(lambda layer: layer["window_rows"][5] - layer["window_rows"][4])  # that a token adds to five others'
    assert found["new"] == pytest.approx(fresh / neurons)
    assert result["bytes_per_token"]["pool"] == pytest.approx(len(layers) * fresh * 2 * width * 4)
    assert found["wasted"] == (0.0 if name == "falcon-mini" else 0.25)


def test_estimate_of_a_model_with_gelu_says_how_to_give_it_relu() -> None:
    with pytest.raises(FlashliteError, match="flashlite relufy MODEL OUT --text FILES"):
        estimate("falcon-mini-gelu", {})


def test_an_estimate_fits_a_narrow_terminal() -> None:
    times = dict.fromkeys(NAMES, 12345.6)
    curves = {f"{d.kind}: {d.name}": times for d in drives.DRIVES}
    shares = {"active": 0.03, "predicted": 0.1, "resident": 0.24, "new": 0.024}
    result = {"model": "m", "dtype": "bf16", "weight_bytes": 10**9, "sparsity": shares, "bytes_per_token": times}
    table = tables.estimate_table(result | {"drives": {"this drive": times, **curves}})
    screen = Console(width=80, file=io.StringIO())
    screen.print(table)
    lines = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    for name, line in zip(["this drive", *(d.kind for d in drives.DRIVES)], lines[-8:-1], strict=True):
        assert line.strip().startswith(name)
        assert line.count("12346") == len(NAMES)
    assert max(map(len, lines)) <= 80
    for drive, line in zip(drives.DRIVES, tables.drive_lines(drives.DRIVES), strict=True):
        assert line.startswith(f"{drive.kind}: {drive.name}, ")


def test_each_matrix_of_a_gated_neuron_is_a_read_where_they_lie_apart() -> None:
    works = count_work(FFNShape(2048, 512, 4, 512, matrices=3), 6, 10**6, Sparsity())
    assert works["window"].reads == 3 * works["bundle"].reads
    assert works["window"].bytes == works["bundle"].bytes


@pytest.mark.slow
def test_estimate_on_the_command_line(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "SAMPLE_BYTES", 2**22)
    (tmp_path / "bench.json").write_text(json.dumps(result.to_json() | {"model": "opt-125m", "dtype": "bf16"}))
    arguments = ["estimate", "opt-125m", "--drive", "SATA", "--against", str(tmp_path / "bench.json")]
    done = CliRunner().invoke(app, [*arguments, "--plot", str(tmp_path / "e.png"), "--json", str(tmp_path / "e.json")])
    assert done.exit_code == 0, done.output
    assert "measured there" in done.output
    assert "870 EVO" in done.output
    assert (tmp_path / "e.png").stat().st_size > 10_000
    assert list(json.loads((tmp_path / "e.json").read_text())["drives"]) == [
        tables.MEASURED_DRIVE,
        "SATA SSD: Samsung 870 EVO 1 TB",
    ]
    for wrong, message in (
        ("[]", "bench.json is not a result of bench --json: an object was expected"),
        ("{}", "the key 'model' is missing"),
        (json.dumps(result.to_json()), "is a result of opt-mini fp32, not of opt-125m bf16"),
    ):
        (tmp_path / "bench.json").write_text(wrong)
        failed = CliRunner().invoke(app, arguments)
        assert isinstance(failed.exception, FlashliteError)
        assert message in str(failed.exception)


@pytest.mark.slow
def test_growth_is_drawn(result: Result, tmp_path: Path) -> None:
    richer = replace(result, budget_bytes=2 * result.budget_bytes)
    assert plots.save(plots.budgets([result, richer]), tmp_path / "budgets.png").stat().st_size > 10_000
    larger = replace(result, model="larger", weight_bytes=2 * result.weight_bytes)
    assert plots.save(plots.sizes([result, larger]), tmp_path / "sizes.png").stat().st_size > 10_000
