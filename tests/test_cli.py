"""The command line: what it prints, and that every foreseen error is one line, exit code 1 and no traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, add_predictor, call, save_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import OPTForCausalLM, PreTrainedTokenizerFast

import flashlite
from flashlite.engine.stages import parse_stages
from flashlite.errors import FlashliteError
from flashlite.storage.store import PREDICTOR, ffn_file


@pytest.fixture(scope="module")
def store_with_tokenizer(tiny_model: OPTForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    checkpoint = save_checkpoint(tiny_model, folder / "checkpoint")
    words = {"<unk>": 0, "<pad>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, TINY["vocab_size"])}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>", "bos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(checkpoint)
    store = flashlite.pack(checkpoint, folder / "store")
    add_predictor(store, tiny_model)
    return store.path


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("verify", "nowhere"), "flashlite pack"),
        (("pack", "nowhere/at-all", "out"), "not a local folder"),
        (("run", "{store}", "--dram-budget", "10%"), "smallest that works"),
        (("run", "{store}", "--dram-budget", "much"), "not understood"),
        (("run", "{store}", "--stage", "9"), "unknown stage"),
        (("run", "{store}", "--window", "0"), "window"),
        (("run", "{store}", "--predictor", "guess"), "unknown predictor"),
        (("run", "{store}", "--dtype", "bf16"), "packed as fp32"),
        (("bench", "{store}", "--stages", "x"), "not understood"),
        (("bench", "{store}", "--tokens", "500"), "positions"),
        (("eval", "{store}", "--text", "missing.txt"), "cannot be read"),
        (("probe", "nowhere"), "cannot be probed"),
        (("pack", "{store}", "out"), "is a store, which is packed already"),
    ],
)
def test_foreseen_errors_are_one_line(
    args: tuple[str, ...], expected: str, store_with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the environment was read long ago
    filled = [arg.format(store=store_with_tokenizer) for arg in args]
    code, _, err = call(monkeypatch, capsys, *filled)
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("flashlite: ")
    assert expected in last
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_no_traceback_from_a_real_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flashlite", "verify", "nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "flashlite: nowhere is not a store: make one with `flashlite pack MODEL nowhere`"
    ]


def test_pack_and_verify(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "a store"
    assert call(monkeypatch, capsys, "pack", tiny_checkpoint, out, "--layout", "bundled")[0] == 0
    assert call(monkeypatch, capsys, "verify", out)[1].strip().endswith("complete and unaltered")
    assert call(monkeypatch, capsys, "pack", tiny_checkpoint, out)[0] == 1
    assert call(monkeypatch, capsys, "pack", tiny_checkpoint, out, "--force")[0] == 0


def test_run_streams_text_and_ends_with_figures(
    store_with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("run", store_with_tokenizer, "--prompt", "w5 w7 w9", "--dram-budget", "1MB", "--max-new-tokens", 5)
    code, out, _ = call(monkeypatch, capsys, *args)
    assert code == 0
    lines = out.strip().splitlines()
    assert "w5 w7 w9" in lines[0]
    assert "MB in" in lines[-1]


def test_eval_prints_both_perplexities_and_writes_them(
    store_with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i}" for i in torch.randint(3, 128, (600,)).tolist()))
    result = tmp_path / "eval.json"
    code, out, _ = call(monkeypatch, capsys, "eval", store_with_tokenizer, "--json", result, "--text", text, text)
    assert code == 0
    assert "perplexity on 1152 tokens" in out
    data = json.loads(result.read_text())
    assert data["predicted_perplexity"] == pytest.approx(data["dense_perplexity"], rel=0.05)


def test_stages_are_parsed() -> None:
    assert parse_stages("0-5") == [0, 1, 2, 3, 4, 5]
    assert parse_stages("5,0") == [5, 0]
    for wrong in ("5-3", "0-7", "", "a"):
        with pytest.raises(FlashliteError):
            parse_stages(wrong)


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_verify_checks_the_predictor_too(
    store_with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = Path(shutil.copytree(store_with_tokenizer, tmp_path / "store"))
    assert call(monkeypatch, capsys, "verify", store)[0] == 0
    flip_last_bit(store / PREDICTOR)
    code, _, err = call(monkeypatch, capsys, "verify", store)
    assert (code, err.strip()) == (1, f"flashlite: {store / PREDICTOR} was altered; train the predictor again")
    (store / PREDICTOR).unlink()
    assert call(monkeypatch, capsys, "verify", store)[0] == 0


def test_run_verifies_reads_if_asked_to(
    store_with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = Path(shutil.copytree(store_with_tokenizer, tmp_path / "store"))
    prompt = " ".join(f"w{i}" for i in range(3, 13))  # longer than the window, so that it reads every record
    args = ("run", store, "--prompt", prompt, "--dram-budget", "1MB", "--max-new-tokens", 3, "--verify-reads")
    assert call(monkeypatch, capsys, *args)[0] == 0
    flip_last_bit(store / ffn_file("bundled"))
    code, _, err = call(monkeypatch, capsys, *args)
    assert code == 1
    assert err.strip().splitlines()[-1] == (
        f"flashlite: {store / ffn_file('bundled')}: layer 2, bundle of neuron 255 was altered; pack the model again"
    )
    assert call(monkeypatch, capsys, *args[:-1])[0] == 0
