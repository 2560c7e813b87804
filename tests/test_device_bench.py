"""Measuring on a device: tasks, limits and tables; on the command line, a device that is not here is one line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, call
from transformers import OPTForCausalLM

from flashlite.bench import cap as cap_module
from flashlite.bench import ladder, measure_one, tables
from flashlite.bench.decoding import forced, greedy
from flashlite.bench.dense import load_dense
from flashlite.bench.ladder import bench
from flashlite.bench.peers import PEERS
from flashlite.bench.peers import run as peer_module
from flashlite.bench.process import device as process
from flashlite.bench.process import run
from flashlite.bench.process.task import DenseTask, IdleTask, PeerTask, Setup, StageTask, Task
from flashlite.bench.result import Result
from flashlite.bench.row import DeviceInfo, IdleCost, PeerCost, StageRun
from flashlite.engine.device import place
from flashlite.engine.device.place import STAGED, DevicePlace
from flashlite.errors import KilledError
from flashlite.storage.store import Store

KEPT = Result.from_json(json.loads((ROOT / "results/bench-opt-mini-fp32.json").read_text()))
GPU = DeviceInfo("a GPU", 24 * 2**30)
MIB = 2**20


@pytest.mark.parametrize("command", ["bench", "run"])
def test_no_gpu_is_one_line_on_the_command_line(
    command: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, why in (("cuda", "needs an NVIDIA GPU"), ("tpu", "is not known: write cpu, cuda, or cuda:1")):
        code, _, err = call(monkeypatch, capsys, command, tiny_checkpoint, "--device", device)
        assert code == 1
        assert err.splitlines() == [line for line in err.splitlines() if why in line]
    assert not (tmp_path / "home").exists()


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Task[Any]]]:
    """What a benchmark on a GPU of 24 GiB would have measured; the dense model fits only where there is no limit."""
    done: list[Task[Any]] = []

    def answer(task: Task[Any], command: object = None) -> Any:
        done.append(task)
        if isinstance(task, StageTask):
            kept = {name: value for name, value in vars(KEPT.stages[task.stage]).items() if name != "predicted_ms"}
            on_device = {"host_bytes": 3 * MIB, "device_peak_bytes": 40 * MIB, "bus_bytes_a_second": 8e9}
            return StageRun(**kept | on_device)
        if isinstance(task, IdleTask):
            return IdleCost(0, 0, 20 * MIB)
        if isinstance(task, PeerTask):
            return PeerCost(
                tokens_equal=True, max_logit_error=0.0, prompt_ms=1.0, total_ms=2.0, bytes_per_token=3.0,
                peak_rss_bytes=4 * MIB, device_peak_bytes=30 * MIB,
            )  # fmt: skip
        if task.setup.device_bytes is not None:
            raise KilledError("the measuring process ended because the device's memory ran out")
        return replace(KEPT.dense, device_peak_bytes=80 * MIB)

    for module in (ladder, peer_module):
        monkeypatch.setattr(module, "run_worker", answer)
    monkeypatch.setattr(cap_module, "run_worker", answer)
    monkeypatch.setattr(ladder, "place_of", lambda name: DevicePlace(torch.device("cuda", 0)))
    monkeypatch.setattr(ladder, "device_info", lambda device: GPU)
    monkeypatch.setattr(ladder, "prompt_ids", lambda store, length: [5] * length)
    monkeypatch.setattr(ladder, "cores_of_others", lambda: 0.0)
    monkeypatch.setattr(ladder, "export", lambda store, out: out)
    monkeypatch.setattr(ladder, "measure_ceiling", lambda *_: (KEPT.curve, KEPT.ceiling))
    return done


def test_a_gpu_is_capped_and_shown(tiny_store: Store, tasks: list[Task[Any]]) -> None:
    """The limit is the budget and what a process holds without a model; under it the dense model must be refused."""
    result = bench(
        tiny_store, stages=[0, 5, 6], tokens=8, prompt_tokens=8, budget="2MB", rounds=1, capped=True, peers=True,
        device="cuda",
    )  # fmt: skip
    cap = result.memory_cap
    assert cap.enforced
    assert cap.how == cap_module.HOW
    assert cap.base_bytes is not None
    assert cap.base_bytes > 20 * MIB + cap_module.DEVICE_WORK_BYTES
    assert cap.bytes == 2_000_000 + cap.base_bytes
    assert cap.dense_fits is False
    assert cap.peak_bytes == 40 * MIB
    limited = [task.setup.device_bytes for task in tasks if isinstance(task, (StageTask, PeerTask))]
    assert set(limited) == {cap.bytes}
    assert {task.setup.device for task in tasks} == {"cuda"}
    assert [task.setup.device_bytes for task in tasks if isinstance(task, DenseTask)] == [None, cap.bytes]
    assert [peer.name for peer in result.peers] == ["accelerate, FFN on disk", "accelerate, layers on disk"]
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result
    lines = "\n".join(tables.summary_lines(result))
    assert "device cuda: a GPU, 24 GiB; copies to it reach 8,000 MB/s" in lines.replace("8000", "8,000")
    assert "on the host, buffers beside the budget take 3.15 MB" in lines
    assert f"enforced by {cap_module.HOW}; at most 41.94 MB were used; under it the dense model is killed" in lines
    assert "copy ms" in tables.ladder_table(result).columns
    assert "transformers in device memory, no cap" in tables.peer_markdown(result)
    assert "device MB" in tables.peer_markdown(result)
    bus_ms = 1e3 * KEPT.stages[0].bytes_per_token / 8e9
    assert result.stages[0].predicted_ms > bus_ms


def test_without_a_device_tables_are_as_they_were() -> None:
    assert "copy ms" not in tables.ladder_table(KEPT, wide=True).columns
    assert "device MB" not in tables.ladder_table(KEPT, wide=True).columns
    assert not any("device" in line for line in tables.summary_lines(KEPT))


def test_memory_that_runs_out_is_said_apart_from_errors(
    tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB\nmore")

    task = DenseTask(Setup(str(tiny_store.path), str(tmp_path), [5] * 8, 8))
    run.write_task(tmp_path / "task.json", task)
    monkeypatch.setattr(measure_one.sys, "argv", ["measure_one", str(tmp_path / "task.json")])
    monkeypatch.setitem(measure_one.MEASURE, DenseTask, full)
    with torch.no_grad():
        measure_one.main()
    torch.set_grad_enabled(True)
    said = capsys.readouterr().out
    assert json.loads(said) == {"out_of_memory": "CUDA out of memory. Tried to allocate 20 MiB"}
    with pytest.raises(KilledError, match="the device's memory ran out: CUDA out of memory"):
        run.run_worker(task, ["/bin/sh", "-c", f"echo '{said.strip()}'"])


def test_the_script_for_a_machine_with_a_gpu_is_a_script(tmp_path: Path) -> None:
    script = ROOT / "tools/gpu_bench.sh"
    subprocess.run(["bash", "-n", script], check=True)
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "usage: bash tools/gpu_bench.sh OUT\n")
    assert list(tmp_path.iterdir()) == []


def test_a_limit_is_a_share_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[float, object]] = []
    monkeypatch.setattr(process, "device_info", lambda device: GPU)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: limits.append(given))
    gpu = torch.device("cuda", 0)
    for nbytes in (6 * 2**30, 2**40, None):
        process.limit(gpu, nbytes)
    assert limits == [(0.25, gpu), (1.0, gpu)]
    monkeypatch.setattr(process, "device_info", lambda device: None)
    process.limit(torch.device("cpu"), 1)
    assert len(limits) == 2


@pytest.mark.parametrize("name", ["accelerate, FFN on disk", "accelerate, layers on disk"])
def test_peers_of_a_device_are_the_dense_model(
    name: str, tiny_store: Store, tiny_model: OPTForCausalLM, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    from flashlite.bench.peers.checkpoint import export

    ids = [5, 6, 7, 8]
    model = PEERS[name].load(tiny_store, export(tiny_store, tmp_path / "checkpoint"), torch.device("cpu"))
    torch.testing.assert_close(forced(model, ids, ids).logits, forced(tiny_model, ids, ids).logits)


def test_the_dense_model_lies_on_the_device(tiny_store: Store, tiny_model: OPTForCausalLM) -> None:
    model = load_dense(tiny_store, place.place_of(STAGED).device)
    assert model.device == torch.device("cpu")
    assert greedy(model, [5, 6, 7], 6)[0] == greedy(tiny_model, [5, 6, 7], 6)[0]


def test_a_stage_on_a_device_is_measured_and_exact(tiny_store: Store, tmp_path: Path) -> None:
    """In this process: the dense model, then stage 5 with the CPU taken for a device."""
    setup = Setup(str(tiny_store.path), str(tmp_path), [5, 6, 7, 8, 9, 10, 11], 8, STAGED)
    measure_one.measure_dense(DenseTask(setup), tiny_store)
    found = measure_one.measure_stage(StageTask(setup, 5, "2MB", check=8), tiny_store)
    assert found.tokens_equal
    assert found.host_bytes > 0
    assert found.bus_bytes_a_second is not None
    assert found.device_peak_bytes is None
    assert found.total_ms == pytest.approx(found.io_ms + found.memory_ms + found.compute_ms + found.copy_ms)
