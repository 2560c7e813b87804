"""A store's model card: what it says is what the store is, and a damaged store gets none."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import add_predictor, call, save_checkpoint
from transformers import OPTConfig, OPTForCausalLM

import flashlite
from flashlite.bench.tables import model_card
from flashlite.engine.predictor_file import PredictorSet
from flashlite.storage.store import Store, ffn_file, sealed
from flashlite.training.planted import PlantedModel, write_planted
from flashlite.training.planted_figures import figures_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def front(card: str) -> dict[str, object]:
    """The YAML at the beginning of a card."""
    return yaml.safe_load(card.split("---\n")[1])


def rows(card: str) -> dict[str, str]:
    """The last cell of each row of its tables, by the first."""
    cells = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {row[0]: row[-1] for row in cells}


@pytest.fixture
def store(tiny_model: OPTForCausalLM, tmp_path: Path) -> Store:
    """A store whose checkpoint lay in the hub's cache."""
    cached = tmp_path / "models--someone--tiny" / "snapshots" / COMMIT
    packed = flashlite.pack(save_checkpoint(tiny_model, cached), tmp_path / "store", "bf16")
    add_predictor(packed, tiny_model)
    return packed


def test_the_command_writes_what_the_store_is(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(monkeypatch, capsys, "card", store.path, "--repo", "someone/tiny-store")
    assert code == 0
    assert out.endswith(f"run `hf upload someone/tiny-store {store.path} . --exclude '.*'`\n")
    card = (store.path / "README.md").read_text()
    assert front(card) == {
        "library_name": "flashlite", "pipeline_tag": "text-generation", "base_model": "someone/tiny",
        "tags": ["flashlite", "opt", "bf16"],
    }  # fmt: skip
    said = rows(card)
    assert said["base model"] == f"someone/tiny at commit {COMMIT}"
    assert said["kind"] == "opt with relu"
    assert said["layers"] == "3, each of 256 neurons; width 64"
    streamed = 3 * 2 * 64 * 256 * 2 / 1e6
    assert said["weights"] == f"bf16, {store.weight_bytes / 1e6:.1f} MB, of which {streamed:.1f} MB stream"
    assert said["checkpoint's dtype"] == "fp32"
    assert said["layouts"] == ", ".join(store.layouts)
    assert said["records"].startswith(f"{store.shape.record_bytes} bytes a neuron")
    files = [path for path in store.path.iterdir() if path.name != "README.md"]
    assert {key: value for key, value in said.items() if key[0] == "`"} == {
        f"`{path.name}`": f"{path.stat().st_size:,}" for path in files
    }
    assert said["together"] == f"{sum(path.stat().st_size for path in files):,}"
    assert f"`{json.loads((store.path / 'manifest.json').read_text())['sha256']}`" in card
    assert 'flashlite.load("someone/tiny-store", dram_budget="50%")' in card
    assert said["0"] == f"{PredictorSet.load(store).reports[0].false_positives:.2%}"
    Store(store.path).verify()  # with the card in its folder


def test_a_card_is_not_written_over_unasked(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (store.path / "README.md").write_text("my own words")
    code, _, err = call(monkeypatch, capsys, "card", store.path)
    assert (code, err) == (1, f"flashlite: {store.path}/README.md exists already: replace it with --force\n")
    assert (store.path / "README.md").read_text() == "my own words"
    assert call(monkeypatch, capsys, "card", store.path, "--force")[0] == 0
    assert "packed for flashlite" in (store.path / "README.md").read_text()


@pytest.mark.parametrize("name", [ffn_file("bundled"), "predictor.safetensors", "config.json"])
def test_a_damaged_store_gets_no_card(
    name: str, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((store.path / name).read_bytes())
    content[-2] ^= 1
    (store.path / name).write_bytes(content)
    code, _, err = call(monkeypatch, capsys, "card", store.path)
    assert code == 1
    assert re.fullmatch(r"flashlite: .*(altered|damaged).*\n", err)
    assert not (store.path / "README.md").exists()


def test_without_a_predictor_and_a_hub_it_says_so(tiny_model: OPTForCausalLM, tmp_path: Path) -> None:
    packed = flashlite.pack(save_checkpoint(tiny_model, tmp_path / "a|b <i>"), tmp_path / "store")
    card = model_card(packed, None)
    assert "base_model" not in front(card)
    assert rows(card)["base model"] == r"a\|b \<i\>, a local checkpoint"
    assert 'It has none; `predictor="copy"`' in card
    assert 'load("USER/NAME", dram_budget="50%")  # the hub id' in card


def test_a_planted_store_says_what_was_planted(tmp_path: Path) -> None:
    config = OPTConfig(
        vocab_size=128, hidden_size=64, word_embed_proj_dim=64, ffn_dim=256, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    store = write_planted(PlantedModel(config, figures_of("opt-125m")), "opt-nano", tmp_path / "store")
    card = model_card(store, PredictorSet.load(store))
    assert "planted" in front(card)["tags"]  # type: ignore[operator]
    assert rows(card)["base model"] == "none: its weights are planted"
    assert f"recall {store.manifest['planted']['recall']:.2%}" in card
    assert "its text is noise" in card


@pytest.mark.parametrize("origin", [5, {"model": 5, "commit": COMMIT}, {"model": 'x"\n- y: z', "commit": "c|d"}])
def test_a_senseless_origin_stays_words(origin: object, store: Store, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store.path, tmp_path / "copy"))
    (copy / "manifest.json").write_text(sealed(store.manifest | {"packed_from": origin}))
    card = model_card(Store(copy), None)
    known = isinstance(origin, dict) and isinstance(origin["model"], str)
    assert front(card).get("base_model") == (origin["model"] if known else None)  # type: ignore[index]
    assert rows(card)["layers"].startswith("3, ")
