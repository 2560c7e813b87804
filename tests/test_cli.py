"""The command line: what it prints, and that every foreseen error is one line, exit code 1 and no traceback."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from conftest import TINY, add_predictor, call, save_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import OPTForCausalLM, PreTrainedTokenizerFast

import flashlite
from flashlite.cli import checks
from flashlite.cli.main import app
from flashlite.engine.predictor_file import PredictorSet
from flashlite.engine.stages import LADDER
from flashlite.errors import FlashliteError
from flashlite.storage.store import PREDICTOR, Store, ffn_file
from flashlite.training.train_predictor import collect, report


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
        (("pack", "nowhere/at-all", "out"), "not a local folder"),
        (("run", "{store}", "--dram-budget", "10%"), "smallest that works"),
        (("run", "{store}", "--dtype", "bf16"), "packed as fp32"),
        (("bench", "{store}", "--tokens", "500", "--dram-budget", "90%"), "positions"),
        (("bench", "{store}", "--dram-budget", "10%"), "write --dram-budget 62.7%"),
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


def test_bench_names_the_budget_that_works_for_all_stages_before_it_measures(
    store_with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(*_: object, **__: object) -> None:
        raise AssertionError("something was measured")

    monkeypatch.setattr("flashlite.bench.ladder.run_worker", measured)
    monkeypatch.setattr("flashlite.bench.ladder.measure_ceiling", measured)
    code, _, err = call(monkeypatch, capsys, "bench", store_with_tokenizer, "--dram-budget", "40%")
    named = re.search(r"write --dram-budget (\S+%),", err)
    assert code == 1
    assert named
    for stage in range(len(LADDER)):
        flashlite.load(store_with_tokenizer, stage=stage, dram_budget=named[1])
    less = f"{float(named[1][:-1]) - 0.2}%"
    with pytest.raises(FlashliteError, match="too small"):
        checks.check_stages(Store(store_with_tokenizer), range(len(LADDER)), less)


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


def words_of(text: str) -> list[str]:
    """The tokens in a text that the tiny tokenizer wrote, the prompt's too."""
    return re.findall(r"w\d+|</s>|<unk>|<pad>", text)


def test_run_says_where_the_positions_end(
    store_with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("transformers.generation.stopping_criteria.EosTokenCriteria.__call__", never_ends)
    args = ("run", store_with_tokenizer, "--prompt", "w5 w7 w9", "--dram-budget", "1MB", "--max-new-tokens")
    code, out, _ = call(monkeypatch, capsys, *args, 500)
    assert code == 0
    assert len(words_of(out)) == TINY["max_position_embeddings"]
    assert out.splitlines()[-2] == "[the text fills all 128 positions of the model]"
    assert "positions" not in call(monkeypatch, capsys, *args, 125)[1]  # just as many as were asked for


def test_run_shows_what_was_written_before_an_error(
    store_with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("transformers.generation.stopping_criteria.EosTokenCriteria.__call__", never_ends)
    monkeypatch.setattr("flashlite.engine.calls.OFFSET", 60)  # so that positions end before `run` expects it
    args = ("run", store_with_tokenizer, "--prompt", "w5 w7 w9", "--dram-budget", "1MB", "--max-new-tokens", 500)
    code, out, err = call(monkeypatch, capsys, *args)
    assert code == 1
    assert err.splitlines() == ["flashlite: 71 tokens don't fit the model's 70 positions: shorten the text"]
    assert len(words_of(out)) == 71  # the last of which was written, and never read


def never_ends(criteria: object, ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return torch.zeros(len(ids), dtype=torch.bool)


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


def test_eval_measures_the_predictors_on_the_text_that_it_is_given(
    store_with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = Store(store_with_tokenizer)
    predictors = PredictorSet.load(store)
    tables = {}
    for seed in (1, 2):
        text = tmp_path / f"{seed}.txt"
        ids = torch.randint(3, 128, (127 + 9 * 128,), generator=torch.Generator().manual_seed(seed))
        text.write_text(" ".join(f"w{i}" for i in ids.tolist()))
        code, tables[seed], _ = call(monkeypatch, capsys, "eval", store.path, "--json", "-", "--text", text)
        assert code == 0
        windows = torch.cat([torch.tensor([2]), ids]).view(10, 128)  # more than one batch of windows
        expected = [
            report(predictor, data, 128)
            for predictor, data in zip(predictors.layers, collect(store, windows), strict=True)
        ]
        for found, layer in zip(json.loads(tables[seed].splitlines()[-1])["layers"], expected, strict=True):
            assert (found["rank"], found["active"]) == (layer.rank, pytest.approx(layer.active))
            for share in ("predicted", "recall", "false_negatives", "false_positives"):  # inputs were rounded there
                assert found[share] == pytest.approx(getattr(layer, share), abs=2e-3)
            assert found["window_rows"] == pytest.approx(layer.window_rows, rel=1e-2)
    assert tables[1] != tables[2]


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


# The prompt


@pytest.mark.parametrize("way", ["file", "input", "typed"])
@pytest.mark.parametrize("content", [b"w5 w7\nw9\n", b"\xef\xbb\xbfw5 w7\r\nw9\r\n"], ids=["unix", "windows"])
def test_a_prompt_is_read_from_a_file_or_from_standard_input(
    way: str, content: bytes, store_with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    args = ("run", store_with_tokenizer, "--dram-budget", "1MB", "--max-new-tokens", 5)
    expected = call(monkeypatch, capsys, *args, "--prompt", "w5 w7\nw9\n")[1].splitlines()
    (tmp_path / "prompt").write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: way == "typed")
    given = ("--prompt-file", tmp_path / "prompt") if way == "file" else ("--prompt", "-")
    code, out, err = call(monkeypatch, capsys, *args, *given)
    assert (code, out.splitlines()[:-1]) == (0, expected[:-1])
    waits = "type the prompt, and end it with Ctrl-D on a line of its own"
    assert [waits in line for line in err.splitlines()] == [True] * (way == "typed")


def test_a_closed_standard_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    code, _, err = call(monkeypatch, capsys, "run", "--prompt", "-")
    assert (code, err) == (
        1, "flashlite: --prompt - reads standard input, which is closed: write --prompt TEXT\n",
    )  # fmt: skip


def test_stages_are_named_or_numbered(
    store_with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("run", store_with_tokenizer, "--prompt", "w5 w7 w9", "--dram-budget", "1MB", "--max-new-tokens", 5)
    reads = {
        stage: call(monkeypatch, capsys, *args, "--stage", stage)[1].split(" ms, ")[-1]
        for stage in ("3", "window", "5", "pool")
    }
    assert (reads["3"], reads["5"]) == (reads["window"], reads["pool"])
    assert reads["3"] != reads["5"]


def test_run_ends_with_the_line_that_a_model_tells_of_itself(
    store_with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = flashlite.load(store_with_tokenizer, dram_budget="1MB")
    assert repr(model.flash) == "[no calls yet; budget 1.0 MB]"
    said = []
    monkeypatch.setattr("flashlite.engine.model.load", lambda *_, **__: said.append(model) or model)
    args = ("run", store_with_tokenizer, "--prompt", "w5 w7 w9", "--dram-budget", "1MB", "--max-new-tokens", 5)
    out = call(monkeypatch, capsys, *args)[1]
    assert said == [model]
    assert out.splitlines()[-1] == repr(model.flash)
    calls = model.flash.calls
    reads = sum(call.reads for call in calls[1:]) / len(calls[1:])
    assert re.fullmatch(rf"\[{len(calls)} calls in .* reads; budget 1\.0 MB\]", repr(model.flash))
    assert f" MB in {reads:.0f} reads" in repr(model.flash)


def test_a_checkpoint_without_a_tokenizer_is_refused_before_it_is_packed(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    code, _, err = call(monkeypatch, capsys, "run", tiny_checkpoint, "--prompt", "x")
    assert code == 1
    assert err.splitlines()[-1].startswith(f"flashlite: {tiny_checkpoint} does not hold a tokenizer that can be loaded")
    assert not (tmp_path / "home").exists()


# Help


def test_help_lists_the_engine_first_and_then_the_course(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ((), ("-h",), ("--help",)):
        code, out, _ = call(monkeypatch, capsys, *arguments)
        assert code == 0
        engine, course = out.split("The engine")[1].split("The course")
        first = [re.findall(r"^│ (\S+)", panel, re.MULTILINE) for panel in (engine, course)]
        assert [first[0][:2], first[1][0]] == [["run", "pack"], "grade"]


@pytest.mark.parametrize("command", typer.main.get_command(app).commands)  # type: ignore[attr-defined]
def test_each_command_has_its_help_at_h(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = (call(monkeypatch, capsys, command, name)[:2] for name in ("-h", "--help"))
    assert short == long
    assert short[0] == 0
    assert f"flashlite {command} " in short[1]


def test_what_is_imported_later_is_listed_at_once() -> None:
    code = "import sys, flashlite; print(dir(flashlite), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"load", "pack", "Store", "FlashliteError", "__version__"} <= set(re.findall(r"'(\w+)'", done.stdout))
    assert done.stdout.split()[-1] == "False"
