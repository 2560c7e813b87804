"""Thresholds within a loss budget: on a small model, and by the command."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY, add_predictor, call, save_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import OPTForCausalLM, PreTrainedTokenizerFast

import flashlite
from flashlite.engine.predictor_file import PredictorSet
from flashlite.errors import PredictorError
from flashlite.storage.store import PREDICTOR, Store
from flashlite.training.evaluate import judge, loss, predicted_model, streamed_model
from flashlite.training.thresholds import CALLS, RECALLS, set_thresholds

WORDS = {"<unk>": 0, "<pad>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, TINY["vocab_size"])}}


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return torch.randint(3, 128, (8, 64), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("budget", [0.002, 0.02])
def test_the_budget_is_kept_and_fewer_neurons_are_predicted(
    budget: float, tiny_store: Store, windows: torch.Tensor
) -> None:
    trained, lines = PredictorSet.load(tiny_store).layers, list[str]()
    layers = set_thresholds(tiny_store, trained, windows, budget, lines.append)
    lost = loss(predicted_model(tiny_store, layers), windows) - loss(streamed_model(tiny_store), windows)
    assert lost <= budget
    assert 1 < len(lines) <= CALLS * tiny_store.layers + 1
    assert f"{lost:+.5f} nats" in "\n".join(lines), "what is returned was measured"
    before, now = (judge(tiny_store, windows, of) for of in (trained, layers))
    assert sum(layer.predicted for layer in now.layers) < sum(layer.predicted for layer in before.layers)
    for old, new in zip(trained, layers, strict=True):
        assert torch.equal(old.a.values, new.a.values)
        assert torch.equal(old.b.values, new.b.values)


def test_a_budget_that_no_threshold_keeps_is_refused(tiny_store: Store, windows: torch.Tensor) -> None:
    trained, lines = PredictorSet.load(tiny_store).layers, list[str]()
    with pytest.raises(PredictorError, match=rf"with a recall of {RECALLS[-1]:.1%} in all layers a token loses"):
        set_thresholds(tiny_store, trained, windows, -1.0, lines.append)
    assert len(lines) == 1, "before anything slow"


@pytest.fixture
def store(tiny_model: OPTForCausalLM, tmp_path: Path) -> Store:
    checkpoint = save_checkpoint(tiny_model, tmp_path / "checkpoint")
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>", "bos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(checkpoint)
    store = flashlite.pack(checkpoint, tmp_path / "store")
    add_predictor(store, tiny_model)
    return store


def test_the_command_writes_thresholds_that_the_engine_takes(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text, other = tmp_path / "text.txt", tmp_path / "other.safetensors"
    text.write_text(" ".join(f"w{i}" for i in torch.randint(3, 128, (600,)).tolist()))
    before = (store.path / PREDICTOR).read_bytes()
    args = ("calibrate", store.path, "--text", text, "--loss-budget", 0.02, "--out", other)
    code, out, err = call(monkeypatch, capsys, *args)
    assert code == 0, err
    assert (store.path / PREDICTOR).read_bytes() == before, "--out alone was written"
    new, old = re.findall(r"(\d+\.\d+) MB of predicted neurons a token instead of (\d+\.\d+)", out)[0]
    assert float(new) < float(old)
    shutil.copyfile(other, store.path / PREDICTOR)
    predictors = PredictorSet.load(store)
    assert flashlite.load(store, dram_budget="90%").generate(max_new_tokens=2).shape[1] > 2
    shares = re.findall(r"(\d+\.\d+)%", "\n".join(line for line in out.splitlines() if re.match(r"\W*[012]\b", line)))
    assert f"{predictors.reports[0].predicted:.2%}"[:-1] in shares


def test_too_little_text_is_one_line(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("w5 " * 128)
    code, _, err = call(monkeypatch, capsys, "calibrate", store.path, "--text", text)
    assert code == 1
    assert err.splitlines()[-1].startswith("flashlite: ")
    assert "too few" in err.splitlines()[-1]
