"""Relufication: what comes out streams, goes on where it was broken off, and is the same from several processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import call
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, FalconConfig, LlamaConfig, PreTrainedTokenizerFast

import flashlite
from flashlite.cli.training_progress import StepLines
from flashlite.errors import CheckpointError, FlashliteError
from flashlite.families.llama import LLAMA
from flashlite.storage.tokenizer import load_tokenizer
from flashlite.training import relufy as relufication
from flashlite.training.distributed import ALONE
from flashlite.training.firing import Firing, soft_share
from flashlite.training.relufy import RECORD, activation_of, open_to_relufy, relufy, with_activation
from flashlite.training.train_model import Point, Recipe, Training

SIZES = {
    "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 1,
    "max_position_embeddings": 32, "bos_token_id": 2, "eos_token_id": 2,
}  # fmt: skip
BORN = {
    "llama": LlamaConfig(**SIZES, intermediate_size=160, hidden_act="silu"),
    "falcon": FalconConfig(**SIZES, ffn_hidden_size=160, activation="gelu"),
}
RECIPE = Recipe(steps=6, batch=4, length=32, lr=1e-2, zeros=0.9, every=2)


@pytest.fixture(scope="module", params=BORN)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with SiLU or GELU, in bf16, with a tokenizer of words."""
    folder = tmp_path_factory.mktemp(request.param) / "born"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(BORN[request.param]).bfloat16().save_pretrained(folder)
    words = {"<unk>": 0, "<pad>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, SIZES["vocab_size"])}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>", "bos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text that counts, so that there is something to learn."""
    path = tmp_path_factory.mktemp("text") / "counting.txt"
    path.write_text(" ".join(f"w{3 + i % 61}" for i in range(800)))
    return path


@pytest.fixture(scope="module")
def data(text: Path) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([3 + i % 61 for i in range(800)])
    return ids[:640], ids[640:768].view(4, 32)


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_command_makes_a_checkpoint_that_streams(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new/relufied"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    with pytest.raises(CheckpointError, match="flashlite relufy"):
        flashlite.pack(checkpoint, tmp_path / "never")
    args = ("relufy", checkpoint, out, "--text", text, "--steps", 6, "--batch", 4, "--every", 3, "--lr", 0.01)
    code, said, err = call(monkeypatch, capsys, *args, "--json", "r.json", "--plot", "r.png")
    assert code == 0, err
    assert "held-out perplexity" in said
    assert re.search(r"^step 1 of 6: loss \d", err, re.MULTILINE)
    assert (tmp_path / "r.png").stat().st_size > 10_000
    result = json.loads((tmp_path / "r.json").read_text())
    assert result.items() <= json.loads((out / RECORD).read_text()).items()
    assert [point["step"] for point in result["log"]] == [0, 3, 6]
    assert result["log"][-1]["perplexity"] < result["log"][0]["perplexity"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "r.json", "r.png"]
    assert [path.name for path in out.parent.iterdir()] == ["relufied"]
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1
    assert all(tensor.dtype == torch.bfloat16 for tensor in weights_of(out).values())
    model = flashlite.load(out, stage="pool", dram_budget="2MB", predictor="oracle")
    dense = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    ids = load_tokenizer(model.flash.store)("w5 w6 w7", return_tensors="pt")["input_ids"]
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    assert model.generate(ids, **settings).tolist() == dense.generate(ids, **settings).tolist()


def test_the_model_before_training_is_transformers_own(checkpoint: Path, data: tuple[Tensor, Tensor]) -> None:
    opened = open_to_relufy(checkpoint)
    born = with_activation(opened, activation_of(opened))
    own = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(born(data[1]).logits, own(data[1]).logits)
        assert not torch.equal(with_activation(opened, "relu")(data[1]).logits, own(data[1]).logits)


def test_a_training_that_diverges_is_one_line_and_goes_on_with_what_was_before(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("relufy", checkpoint, tmp_path / "out", "--text", text, "--steps", 6, "--batch", 4, "--every", 3)
    code, _, err = call(monkeypatch, capsys, *args, "--lr", 1e30)
    assert code == 1
    assert err.splitlines()[-1].startswith("flashlite: the training has diverged by step 3: choose a lower")
    assert "Warning" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["out.training.safetensors"]
    code, _, err = call(monkeypatch, capsys, *args, "--lr", 1e30)
    assert code == 1
    assert "going on from what" in err


class Broken(Exception):
    """What breaks a training off."""


@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_training_that_was_broken_off_ends_as_one_that_was_not(
    checkpoint: Path, data: tuple[Tensor, Tensor], tmp_path: Path, at: int
) -> None:
    opened = open_to_relufy(checkpoint)

    def break_off(step: int, loss: float) -> None:
        if step == at:
            raise Broken

    whole = relufy(opened, tmp_path / "whole", *data, RECIPE)
    with pytest.raises(Broken):
        relufy(opened, tmp_path / "parts", *data, RECIPE, tell=break_off)
    assert [path.name for path in tmp_path.iterdir() if "parts" in path.name] == ["parts.training.safetensors"]
    steps: list[int] = []
    parts = relufy(opened, tmp_path / "parts", *data, RECIPE, tell=lambda step, loss: steps.append(step))
    assert steps == list(range((at - 1) // 2 * 2 + 1, 7))
    assert [(p.step, p.perplexity, p.zeros) for p in parts.log] == [(p.step, p.perplexity, p.zeros) for p in whole.log]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]
    one, other = weights_of(tmp_path / "parts"), weights_of(tmp_path / "whole")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_state_of_another_training_is_refused(checkpoint: Path, data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    opened, state = open_to_relufy(checkpoint), tmp_path / "out.training.safetensors"

    def break_off(step: int, loss: float) -> None:
        raise Broken

    with pytest.raises(Broken):
        relufy(opened, tmp_path / "out", *data, RECIPE, tell=break_off)
    stream, held_out = data
    for changed in ((stream + 0, held_out, Recipe(**vars(RECIPE) | {"lr": 0.1})), (stream[1:], held_out, RECIPE)):
        with pytest.raises(FlashliteError, match="other settings, text or weights"):
            relufy(opened, tmp_path / "out", *changed)
    content = state.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content[:8] + b"x" + content[9:]):
        state.write_bytes(damaged)
        with pytest.raises(FlashliteError, match="damaged: remove it"):
            relufy(opened, tmp_path / "out", *data, RECIPE)


def torchrun(tmp_path: Path, *args: object) -> subprocess.CompletedProcess[str]:
    """Run flashlite in two processes."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "flashlite"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*run, *map(str, args)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("checkpoint", ["falcon"], indirect=True)
def test_two_processes_train_what_one_does(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--text", text, "--steps", 4, "--batch", 4, "--every", 2, "--lr", 0.01]
    done = torchrun(tmp_path, "relufy", checkpoint, "two", *args)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 4 of 4") == 1
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, capsys, "relufy", checkpoint, "one", *args)[0] == 0
    one, two = (json.loads((tmp_path / name / RECORD).read_text())["log"] for name in ("one", "two"))
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["perplexity"] == pytest.approx(mine["perplexity"], rel=1e-2)
        assert theirs["zeros"] == pytest.approx(mine["zeros"], abs=1e-2)
    done = torchrun(tmp_path, "relufy", checkpoint, "three", "--text", text, "--batch", 5)
    assert done.returncode != 0
    assert "flashlite: 2 processes can't share batches of 5: choose a multiple" in done.stderr


@pytest.mark.parametrize("checkpoint", ["falcon"], indirect=True)
def test_two_processes_train_the_predictors_that_one_does(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    relufy(open_to_relufy(checkpoint), tmp_path / "model", *_few(), Recipe(steps=1, batch=2, length=32, every=1))
    store = flashlite.pack(tmp_path / "model", tmp_path / "store")
    args = ["train-predictor", store.path, "--text", text, "--steps", 5]
    assert call(monkeypatch, capsys, *args, "--out", tmp_path / "one.safetensors")[0] == 0
    done = torchrun(tmp_path, *args, "--out", tmp_path / "two.safetensors")
    assert done.returncode == 0, done.stderr
    one, two = (safe_open(tmp_path / f"{name}.safetensors", "pt") for name in ("one", "two"))
    assert one.metadata() == two.metadata()  # reports, and a digest of all tensors


def _few() -> tuple[Tensor, Tensor]:
    return torch.arange(3, 53).repeat(2), torch.arange(3, 35).view(1, 32)


def test_pressure_makes_zeros(checkpoint: Path, data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    opened, last = open_to_relufy(checkpoint), {}
    for zeros in (0.0, 0.95):
        recipe = Recipe(**vars(RECIPE) | {"steps": 60, "every": 60, "zeros": zeros})
        last[zeros] = relufy(opened, tmp_path / str(zeros), *data, recipe).log[-1]
    assert sum(last[0.95].zeros) > sum(last[0.0].zeros) + 0.2


def test_weights_of_the_pressure_follow_what_fires() -> None:
    model = AutoModelForCausalLM.from_config(BORN["llama"])
    firing = Firing(model, LLAMA, zeros=0.5)
    firing._first = [torch.ones(1, 4, 8), -torch.ones(1, 4, 8)]
    assert firing.zeros().tolist() == [0.0, 1.0]
    firing.adjust(ALONE)
    assert firing.weights.tolist() == pytest.approx([0.001, 0.0])
    assert soft_share(torch.ones(1, 4, 8) * 9) > 0.99 > 0.01 > soft_share(torch.ones(1, 4, 8) * -9)


@pytest.mark.parametrize(
    ("tokens", "texts", "said"), [(32, 4, "too few to train on texts of 32"), (640, 0, "held-out texts are too few")]
)
def test_too_little_text_is_refused(
    checkpoint: Path, data: tuple[Tensor, Tensor], tmp_path: Path, tokens: int, texts: int, said: str
) -> None:
    model = with_activation(open_to_relufy(checkpoint), "relu")
    family = open_to_relufy(checkpoint).family
    with pytest.raises(FlashliteError, match=said):
        Training(model, Firing(model, family), data[0][:tokens], data[1][:texts], RECIPE, ALONE, tmp_path / "state")


def test_what_cannot_be_relufied_is_one_line_before_anything_is_trained(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(*_: object, **__: object) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr(relufication, "relufy", trained)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    odd = tmp_path / "odd"
    odd.mkdir()
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (odd / name).write_bytes((checkpoint / name).read_bytes())
    config = json.loads((checkpoint / "config.json").read_text())
    key = "activation" if config["model_type"] == "falcon" else "hidden_act"
    (odd / "config.json").write_text(json.dumps(config | {key: "bent"}))
    (tmp_path / "store").mkdir()
    (tmp_path / "store/manifest.json").touch()
    for args, said in (
        ((checkpoint, "there", "--text", text), "exists already"),
        (("store", "out", "--text", text), "is a store: name the checkpoint that it was packed from"),
        ((checkpoint, "out", "--text", "nowhere.txt"), "nowhere.txt cannot be read"),
        ((odd, "out", "--text", text), "no activation 'bent'"),
        ((checkpoint, "out", "--text", text, "--tokens", 64), "too few to train and to measure on"),
        ((checkpoint, "out", "--text", text, "--plot", "curve.nothing"), "no ending that matplotlib knows"),
    ):
        monkeypatch.chdir(tmp_path)
        code, _, err = call(monkeypatch, capsys, "relufy", *args)
        assert code == 1
        assert said in err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_squared_relu_stays_as_it_is(checkpoint: Path, data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    """It streams already: plain ReLU in its place would be another model."""
    config = json.loads((checkpoint / "config.json").read_text())
    key = "activation" if config["model_type"] == "falcon" else "hidden_act"
    squared = shutil.copytree(checkpoint, tmp_path / "squared")
    (squared / "config.json").write_text(json.dumps(config | {key: "relu2"}))
    result = relufy(open_to_relufy(squared), tmp_path / "out", *data, RECIPE)
    assert json.loads((tmp_path / "out/config.json").read_text())[key] == "relu2"
    assert result.born == Point(0, result.log[0].perplexity, result.log[0].zeros, 0.0)


def test_a_relufied_model_is_trained_on_again(checkpoint: Path, data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    """Its activation is ReLU already, so what it was born with has zeros too."""
    relufy(open_to_relufy(checkpoint), tmp_path / "first", *data, RECIPE)
    again = relufy(open_to_relufy(tmp_path / "first"), tmp_path / "second", *data, RECIPE)
    assert again.activation == "relu"
    assert again.born == Point(0, again.log[0].perplexity, again.log[0].zeros, 0.0)


@pytest.mark.parametrize(
    ("seconds", "first", "told"),
    [
        (1.0, 1, {1: None, 30: "3 min", 59: "2 min", 88: "2 min", 117: "1 min", 146: "1 min", 175: "less"}),
        (20.0, 1, {1: None, **{step: "" for step in range(2, 201)}}),
        (1.0, 101, {101: None, 130: "1 min", 159: "1 min", 188: "less"}),
    ],
    ids=["quick", "slow", "gone on with"],
)
def test_without_a_terminal_a_reader_never_waits_long_for_a_line(
    seconds: float, first: int, told: dict[int, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    lines, found = StepLines(200), {}
    for step in range(first, 201):
        now += seconds
        if (line := lines.after(step, 2.5)) is not None:
            found[step] = line
    assert found.keys() == told.keys()
    assert found.pop(first) == f"step {first} of 200: loss 2.500"
    for step, line in found.items():
        assert line.startswith(f"step {step} of 200: loss 2.500, ")
        assert line.endswith(" left")
        assert (told[step] or "") in line
