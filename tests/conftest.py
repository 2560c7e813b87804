"""Fixtures: small OPT checkpoints in the published formats, packed stores, and what the dense model says."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
import sync
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

import flashlite
from flashlite.cli import main as cli
from flashlite.course.manifest import Course, read_course
from flashlite.engine.predictor import LowRankPredictor
from flashlite.engine.predictor_file import LayerReport, PredictorSet
from flashlite.errors import BudgetError
from flashlite.storage.store import PREDICTOR, Store

ROOT = Path(__file__).parent.parent

torch.set_num_threads(1)  # threads only get in each other's way in models this small
os.environ.setdefault("OMP_NUM_THREADS", "1")  # nor in the processes that tests start side by side

TINY = {
    "vocab_size": 128, "hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 256, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 128, "dropout": 0.0, "activation_function": "relu",
    "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
}  # fmt: skip


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what it is worth that the tests of exercises pass, if only these are run. Grading takes no conftest."""
    paths = [Path(name.partition("::")[0]).resolve() for name in config.args]
    if not all(path.is_relative_to(ROOT / "tests/exercises") for path in paths):
        return []
    chapters = {path.name[7:9].lstrip("0") or "0" for path in paths if path.name.startswith("test_ex")}
    return [
        "These tests run on the engine's own code, not on your files in exercises/: a pass says nothing of yours.",
        f"To test your exercises, run `{' '.join(['flashlite grade', *(chapters if len(chapters) == 1 else ())])}`.",
    ]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say it also where -q leaves pytest's header out."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not reporter.showheader:
        for line in pytest_report_header(session.config):
            reporter.write_line(line)


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Run the command line in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["flashlite", *map(str, args)])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def make_model(seed: int = 0, **overrides: object) -> OPTForCausalLM:
    """A random OPT whose biases make about one neuron in ten fire, as in a real one."""
    torch.manual_seed(seed)
    model = OPTForCausalLM(OPTConfig(**TINY | overrides)).eval()
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            for p in layer.parameters():
                if p.ndim == 1:
                    p.add_(0.1 * torch.randn_like(p))
            layer.fc1.weight.mul_(5)
            layer.fc1.bias.sub_(1.0)
    return model


def save_checkpoint(
    model: OPTForCausalLM, folder: Path, kind: str = "safetensors", shards: int = 1, prefix: str = "model.decoder.",
    dtype: torch.dtype = torch.float32,
) -> Path:  # fmt: skip
    """Write a model as it would be published: kind safetensors or bin, in shards, with old or new names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    state = {n: t.to(dtype).contiguous() for n, t in model.state_dict().items() if n != "lm_head.weight"}
    state = {n.replace("model.decoder.", prefix): t for n, t in state.items()}
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    if shards == 1:
        _save(state, folder / f"{stem}.{suffix}")
        return folder
    names, weight_map = sorted(state), {}
    for i in range(shards):
        shard = f"{stem}-{i + 1:05d}-of-{shards:05d}.{suffix}"
        part = {n: state[n] for n in names[i::shards]}
        _save(part, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def _save(state: dict[str, Tensor], path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


def add_predictor(store: Store, model: OPTForCausalLM) -> None:
    """Give a tiny store a full-rank predictor, which is right but for rounding, with made-up needs."""
    layers, reports = [], []
    for layer in model.model.decoder.layers:
        a = torch.eye(store.shape.d_model)
        layers.append(LowRankPredictor.of(a, layer.fc1.weight.detach().clone(), layer.fc1.bias.detach() + 0.02))
        needs = tuple(20.0 * k for k in range(1, 9))
        reports.append(LayerReport(len(a), 0.1, 0.12, 0.99, 0.01, 0.03, needs))
    PredictorSet(layers, reports, store.up_projections).save(store.path / PREDICTOR)


def smallest_budget(store: Store, stage: int | str, predictor: str = "trained") -> int:
    """What the message about too small a budget says would do, in bytes."""
    with pytest.raises(BudgetError) as refused:
        flashlite.load(store, stage=stage, predictor=predictor, dram_budget=1)
    return int(str(refused.value).partition("works is ")[2].partition(" ")[0])


@pytest.fixture(scope="session")
def tiny_model() -> OPTForCausalLM:
    return make_model()


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: OPTForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tiny_model, tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def tiny_store(tiny_model: OPTForCausalLM, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = flashlite.pack(tiny_checkpoint, tmp_path_factory.mktemp("store") / "tiny")
    add_predictor(store, tiny_model)
    return store


@pytest.fixture(scope="session")
def course() -> Course:
    """The course of this clone."""
    return read_course(ROOT)


def copy_course(folder: Path) -> Course:
    """A copy of the course with untouched exercises, which a test may change."""
    for name in ("exercises", "solutions", "flashlite", "tests/exercises"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "opt_mini", "hints.json")
        )
    for name in ("course.toml", "pyproject.toml"):
        shutil.copyfile(ROOT / name, folder / name)
    copied = read_course(folder)
    sync.sync(copied, force=True)
    return copied


@pytest.fixture
def clone(tmp_path: Path) -> Course:
    """A copy of the course for one test."""
    return copy_course(tmp_path)


@pytest.fixture(scope="session")
def site() -> Path:
    """The built site, which `make site-test` builds anew and names; other runs skip what asks for it."""
    if "FLASHLITE_SITE" not in os.environ:
        pytest.skip("the site is tested by `make site-test`, which builds it and needs Chromium")
    return Path(os.environ["FLASHLITE_SITE"]).resolve(strict=True)


@pytest.fixture(scope="session")
def browser(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Chromium]:
    """A browser for all tests. Where there is none they fail, because `make site-test` was asked for."""
    program = chromium.find()
    assert program, "there is no Chromium: install it, on Debian and Ubuntu with `apt-get install chromium`"
    opened = chromium.Chromium(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
