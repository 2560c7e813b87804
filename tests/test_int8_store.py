"""Stores in int8: their format, damage to them, predictors for them, and all that a user meets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import add_predictor, call, make_model, save_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from test_damage import STAGES, Victim, assert_harmless, assert_refused, cases, edit, scribble
from test_int8 import ODD
from test_synth import PROMPT, Made, active_share, planted_as, walk  # noqa: F401 (planted_as is a fixture)
from transformers import OPTForCausalLM

import flashlite
from flashlite.bench import cost
from flashlite.bench.compare import compare_dtypes
from flashlite.bench.decoding import exactness, forced, greedy
from flashlite.bench.dense import load_dense
from flashlite.bench.estimate import estimate
from flashlite.bench.ladder import bench
from flashlite.cli.checks import check_exercises
from flashlite.course.impl.choose import choose
from flashlite.course.manifest import find_course
from flashlite.course.plug import Plugged
from flashlite.drive.published import find_drive
from flashlite.engine.device.place import STAGED
from flashlite.engine.int8.exact_copy import ExactCopy
from flashlite.engine.model import load
from flashlite.engine.predictor import LowRankPredictor
from flashlite.errors import BudgetError, FlashliteError, ReadError, StoreError
from flashlite.storage import store as store_module
from flashlite.storage.pack import pack
from flashlite.storage.safetensors_file import STORED, read_extents
from flashlite.storage.store import CHECKSUMS, MANIFEST, PREDICTOR, RESIDENT, Store, ffn_file, shape_of
from flashlite.storage.tokenizer import token_windows
from flashlite.training.evaluate import evaluate
from flashlite.training.planted_text import ChainText
from flashlite.training.train_predictor import train_predictors

LIBRARY = Path(flashlite.__file__).parent
WEIGHTS = (RESIDENT, CHECKSUMS, ffn_file("bundled"), ffn_file("split"))


@pytest.fixture(scope="module")
def tiny(tiny_model: OPTForCausalLM, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = pack(tiny_checkpoint, tmp_path_factory.mktemp("int8") / "tiny", "int8")
    add_predictor(store, tiny_model)
    return store


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """opt-mini in several dtypes."""
    folder = tmp_path_factory.mktemp("opt-mini")
    return {dtype: pack("opt-mini", folder / dtype, dtype) for dtype in ("fp32", "bf16", "int8")}


@pytest.fixture(scope="module")
def held_out(mini: dict[str, Store]) -> torch.Tensor:
    """Windows of flashlite's own source: no model was trained on it."""
    return token_windows((path.read_text() for path in sorted(LIBRARY.glob("*.py"))), mini["int8"], 512)


# The format


def test_an_older_flashlite_asks_for_a_newer_one(tiny: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny.manifest["format"] == 4
    monkeypatch.setattr(store_module, "NEWEST", 3)
    with pytest.raises(StoreError, match="has the newer format 4, this one reads 3: update flashlite"):
        Store(tiny.path)


def test_stores_of_floats_keep_the_format_that_older_ones_read(tiny_store: Store) -> None:
    assert tiny_store.manifest["format"] == 3


def test_packing_writes_the_same_bytes_each_time(tiny: Store, tiny_checkpoint: Path, tmp_path: Path) -> None:
    again = pack(tiny_checkpoint, tmp_path / "again", "int8")
    assert again.manifest == tiny.manifest
    assert open_as(tiny.path, "int8").dtype_name == "int8"
    with pytest.raises(StoreError, match="was packed as int8, not bf16"):
        open_as(tiny.path, "bf16")


def open_as(path: Path, dtype: str) -> Store:
    return flashlite.load(path, dtype=dtype, predictor="oracle", dram_budget="2MB").flash.store


def test_torchs_name_of_int8_is_understood(tiny: Store) -> None:
    assert flashlite.load(tiny, dtype=torch.int8, predictor="oracle", dram_budget="2MB").flash.store is tiny


def test_it_takes_half_of_bf16s_bytes(mini: dict[str, Store]) -> None:
    """Of opt-mini a neuron's record is a kilobyte, which is on the grid of most drives."""
    config, family = mini["int8"].config, mini["int8"].family
    records = {dtype: shape_of(config, family, STORED[dtype], 512).record_bytes for dtype in ("bf16", "int8")}
    assert records == {"bf16": 2048, "int8": 1024}
    if mini["int8"].shape.alignment <= 1024:
        sizes = {dtype: sum(e.nbytes for e in mini[dtype]._extents[ffn_file("bundled")].values()) for dtype in records}
        assert 2 * sizes["int8"] == sizes["bf16"]
    assert mini["int8"].weight_bytes < 0.53 * mini["bf16"].weight_bytes


# Damage


@pytest.fixture(scope="module")
def shared(tiny: Store, tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return Victim(Path(shutil.copytree(tiny.path, tmp_path_factory.mktemp("damage") / "store")))


@pytest.fixture
def victim(shared: Victim) -> Any:
    yield shared
    shared.heal()


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("forged", [False, True])
@cases(8)
@given(data=st.data(), stage=STAGES)
def test_weights_with_any_bytes(data: st.DataObject, name: str, forged: bool, stage: int, shared: Victim) -> None:
    shared.heal()
    begin = 8 + int.from_bytes(shared.sound[name][:8], "little")
    shared.alter(name, scribble(data, shared.sound[name], begin))
    if forged:
        shared.forge(name)
    assert_harmless(shared, stage, forged)
    shared.heal()


@cases(20)
@given(data=st.data(), seal=st.booleans(), stage=STAGES)
def test_manifest_with_any_values(data: st.DataObject, seal: bool, stage: int, shared: Victim) -> None:
    shared.heal()
    manifest = edit(data, shared.manifest)
    if seal and isinstance(manifest, dict):
        shared.seal(manifest)
    else:
        shared.alter(MANIFEST, json.dumps(manifest).encode())
    assert_harmless(shared, stage, forged=True)
    shared.heal()


@pytest.mark.parametrize("changes", [{"format": 3}, {"dtype": "fp32"}, {"dtype": "bf16"}, {"format": 2}], ids=str)
def test_a_format_and_a_dtype_that_do_not_belong_together_are_damage(changes: dict[str, Any], victim: Victim) -> None:
    victim.seal(victim.manifest | changes)
    assert_refused(lambda: Store(victim.path), StoreError, "manifest.json is damaged|has another shape")


def test_a_bit_flipped_in_any_tensor_is_found(tmp_path: Path) -> None:
    """Also in scales, and in what fills up a group whose matrices end off the grid."""
    store = pack(save_checkpoint(make_model(**ODD), tmp_path / "checkpoint"), tmp_path / "store", "int8")
    for name in WEIGHTS:
        path, sound = store.path / name, (store.path / name).read_bytes()
        for tensor, extent in read_extents(path).items():
            at = extent.begin + extent.nbytes // 2
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
            assert_refused(store.verify, StoreError, f"{tensor} was altered")
        path.write_bytes(sound)
    store.verify()


@pytest.mark.parametrize("stage", [0, 2, 5, 6])
@pytest.mark.parametrize("tensor", ["1.fc2.weight_scale", "1.fc1.weight_scale", "2.self_attn.k_proj.weight"])
def test_verified_reads_notice_altered_resident_weights(tensor: str, stage: int, victim: Victim) -> None:
    extent = Store(victim.path)._extents[RESIDENT][f"model.decoder.layers.{tensor}"]
    sound = victim.sound[RESIDENT]
    victim.alter(RESIDENT, sound[: extent.begin] + bytes([sound[extent.begin] ^ 4]) + sound[extent.begin + 1 :])
    assert_refused(lambda: victim.speak(stage), ReadError, "was altered; pack the model again")


@pytest.mark.parametrize("stage", [0, 2, 5, 6])
def test_verified_reads_of_a_sound_store_are_exact(stage: int, victim: Victim) -> None:
    assert victim.speak(stage) == victim.tokens
    assert victim.speak(stage, "copy") == victim.tokens


def test_scales_that_are_read_by_themselves_are_compared_too(victim: Victim) -> None:
    """A copy that predicts is made of rows and of scales; these are read apart from their group."""
    model = flashlite.load(victim.path, stage=5, predictor="oracle", dram_budget="150%", verify_reads=True)
    extent = Store(victim.path)._extents[RESIDENT]["model.decoder.layers.1.fc1.weight_scale"]
    sound = victim.sound[RESIDENT]
    victim.alter(RESIDENT, sound[: extent.begin] + bytes([sound[extent.begin] ^ 4]) + sound[extent.begin + 1 :])
    with pytest.raises(ReadError, match=r"layers\.1\.fc1\.weight_scale was altered"):
        greedy(model, [2, 17, 40], 2)


# Predictors


def test_a_copy_is_exact(tiny: Store) -> None:
    copied, exact = (load(tiny, stage=5, predictor=kind, dram_budget="2MB") for kind in ("copy", "oracle"))
    for ffn, other in zip(copied.flash.sparse, exact.flash.sparse, strict=True):
        assert isinstance(ffn.predictor, ExactCopy)
        x = torch.randn(64, tiny.shape.d_model, generator=torch.Generator().manual_seed(1))
        assert torch.equal(ffn.predictor.mask(x), other.predictor.mask(x))
        assert ffn.predictor.nbytes == copied.flash.budget.predictors // tiny.layers
    tokens, logits = greedy(load_dense(tiny), [2, 17, 40, 99, 5, 33, 71], 12)
    assert exactness(copied, 5, [2, 17, 40, 99, 5, 33, 71], tokens, logits).max_logit_error <= 1e-4


def test_predictors_are_trained_on_what_int8_computes(tiny: Store, tmp_path: Path) -> None:
    store = Store(shutil.copytree(tiny.path, tmp_path / "store"))
    texts = torch.randint(3, 128, (18, 32), generator=torch.Generator().manual_seed(0))
    trained = train_predictors(store, texts[:12], texts[12:], recall=0.9, steps=20)
    trained.save(store.path / PREDICTOR)
    measured = evaluate(store, texts[12:], "trained")
    assert min(layer.recall for layer in measured.layers) >= 0.85
    model = load(store, stage=5, predictor="auto", dram_budget="2MB")
    assert isinstance(model.flash.sparse[0].predictor, LowRankPredictor)


def test_opt_minis_own_predictor_and_its_perplexity(mini: dict[str, Store], held_out: torch.Tensor) -> None:
    """The predictor was trained in fp32, and foresees what fires in int8 too; rounding costs less than a hundredth."""
    assert mini["int8"].up_projections == mini["fp32"].up_projections
    found = evaluate(mini["int8"], held_out, "trained", mini["fp32"])
    assert min(layer.recall for layer in found.layers) >= 0.96
    assert found.dense_perplexity == pytest.approx(found.original_perplexity, rel=0.01)
    assert found.predicted_perplexity == pytest.approx(found.dense_perplexity, rel=0.01)


def test_opt_mini_is_exact_at_every_stage(mini: dict[str, Store], held_out: torch.Tensor) -> None:
    prompt = held_out[0, :12].tolist()
    tokens, logits = greedy(load_dense(mini["int8"]), prompt, 4)
    for stage in range(7):
        model = load(mini["int8"], stage=stage, predictor="oracle", dram_budget="60%")
        assert exactness(model, stage, prompt, tokens, logits).max_logit_error <= 1e-4
    assert forced(load(mini["int8"], dram_budget="75%"), prompt, tokens).chosen == tokens


def test_an_original_of_another_model_is_refused(mini: dict[str, Store], tiny_store: Store) -> None:
    with pytest.raises(StoreError, match="holds another model than"):
        evaluate(mini["int8"], torch.zeros(1, 8, dtype=torch.int64), "copy", tiny_store)


# The command line


def test_pack_verify_run_and_eval(
    mini: dict[str, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    text, out, result = LIBRARY / "errors.py", tmp_path / "out", tmp_path / "eval.json"
    code, said, _ = call(monkeypatch, capsys, "pack", "opt-mini", out, "--dtype", "int8", "--layout", "bundled")
    assert (code, said.splitlines()[-1]) == (0, f"{out}: 6 layers, 22.4 MB of weights as int8")
    assert call(monkeypatch, capsys, "verify", out)[0] == 0
    arguments = ("--prompt", "import os\nimport", "--max-new-tokens", 4, "--dram-budget", "75%")
    code, said, err = call(monkeypatch, capsys, "run", out, *arguments)
    assert code == 0, err
    assert said.startswith("import os\nimport")
    beside = ("--original", mini["fp32"].path, "--json", result)
    code, said, err = call(monkeypatch, capsys, "eval", out, "--text", text, "--tokens", 512, *beside)
    assert code == 0, err
    figures = json.loads(result.read_text())
    change = figures["dense_perplexity"] / figures["original_perplexity"] - 1
    assert abs(change) < 0.01
    dense, before = (figures[f"{name}_perplexity"] for name in ("dense", "original"))
    assert f"dense in int8 {dense:.4f}, in fp32 {before:.4f} ({change:+.2%})" in said
    assert not (tmp_path / "home").exists()


def test_eval_finds_the_original_of_what_it_packs(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("flashlite.training.evaluate.evaluate", lambda *arguments: seen.extend(arguments))
    monkeypatch.setattr("flashlite.storage.tokenizer.token_windows", lambda *_: torch.zeros(1, 8))
    monkeypatch.setattr("sys.argv", ["flashlite", "eval", str(tiny_checkpoint), "--dtype", "int8", "--text", __file__])
    from flashlite.cli import main

    with pytest.raises(AttributeError):  # there is no result to show
        main.main()
    store, _, _, original = seen
    assert (store.dtype_name, original.dtype_name) == ("int8", "fp32")


@pytest.mark.parametrize("device", ["cuda", STAGED])
def test_a_device_is_refused_in_one_line_before_anything_is_packed(
    device: str, tiny: Store, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for model, dtype in ((tiny_checkpoint, "int8"), (tiny, None)):
        with pytest.raises(FlashliteError, match="weights in int8 are multiplied on the CPU alone") as error:
            load(model, dtype=dtype, device=device, predictor="oracle")
        assert "\n" not in str(error.value)
    with pytest.raises(FlashliteError, match="on the CPU alone"):
        bench(tiny, stages=[5], tokens=8, prompt_tokens=4, predictor="oracle", device=device)
    assert list(tmp_path.iterdir()) == []


def test_exercises_that_multiply_floats_are_refused(tiny: Store) -> None:
    course = find_course()
    with pytest.raises(FlashliteError, match=r"the exercises ex05 run OPT in fp32, bf16 or fp16, and .* is in int8"):
        check_exercises(tiny, Plugged(choose(course, "ref,5.2=solutions")))
    check_exercises(tiny, Plugged(choose(course, "ref,ex09=solutions,ex10=solutions")))


def test_the_default_budget_of_opt_mini_names_one_that_works(mini: dict[str, Store]) -> None:
    with pytest.raises(BudgetError, match="write --dram-budget 6") as refused:
        load(mini["int8"])
    load(mini["int8"], dram_budget=refused.value.smallest)


def test_estimate_counts_the_bytes_that_a_store_has(mini: dict[str, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "SAMPLE_BYTES", 2**20)
    monkeypatch.setattr("flashlite.bench.estimate.published_config", lambda name: mini["int8"].config)
    curve = {"drive": find_drive("SATA").curve()}
    found = {dtype: estimate("opt-mini", curve, dtype) for dtype in ("bf16", "int8")}
    assert found["int8"]["weight_bytes"] == mini["int8"].weight_bytes
    half = [result["bytes_per_token"]["pool"] for result in found.values()]
    assert half[0] == 2 * half[1]


@pytest.mark.slow
def test_a_benchmark_of_int8(tiny_checkpoint: Path, mini: dict[str, Store]) -> None:
    """Compared with the dense model of the weights that int8 stands for, at each stage, in processes of their own."""
    result = bench(mini["int8"], stages=range(7), tokens=8, prompt_tokens=8, rounds=1, budget="75%", check_tokens=8)
    assert result.dtype == "int8"
    for stage in result.stages:
        assert stage.tokens_equal
        assert stage.max_logit_error <= 1e-4
        assert stage.peak_rss_bytes <= result.budget_bytes + result.base.total
        assert stage.linear_ms > 0
        assert stage.predicted_ms > 0


def test_dtypes_side_by_side_read_the_same_neurons(mini: dict[str, Store]) -> None:
    """Each is compared with its own dense model, and all are fed the text of the first one."""
    stores = [mini["fp32"], mini["int8"]]
    naive, pool, other_naive, other_pool = compare_dtypes(stores, [0, 5], tokens=12, prompt_tokens=8, budget="85%")
    assert [row.stage for row in (naive, pool, other_naive, other_pool)] == [0, 5, 0, 5]
    assert all(row.tokens_equal for row in (naive, pool, other_naive, other_pool))
    assert (naive.agreement, other_naive.agreement > 0.7) == (1.0, True)
    assert other_naive.bytes_per_token / naive.bytes_per_token == pytest.approx(
        stores[1].weight_bytes / stores[0].weight_bytes, rel=0.01
    )
    assert other_pool.reads_per_token == pytest.approx(pool.reads_per_token, rel=0.1)
    share = stores[1].shape.record_bytes / stores[0].shape.record_bytes
    assert other_pool.bytes_per_token == pytest.approx(share * pool.bytes_per_token, rel=0.1)


# Planted models


@pytest.mark.parametrize("name", ["falcon-7b", pytest.param("llama-2-7b", marks=pytest.mark.slow)])
def test_planting_holds_in_int8(name: str, planted_as: Made) -> None:  # noqa: F811
    planted, store = planted_as(name, "int8")
    assert isinstance(planted.text, ChainText)
    store.verify()
    texts = planted.text.order[:512].view(8, 64)
    assert active_share(store, texts) == pytest.approx(store.manifest["planted"]["active"], rel=0.1)
    found = evaluate(store, texts, "trained")
    assert min(layer.recall for layer in found.layers) > 0.985
    expected, logits = greedy(load_dense(store), PROMPT, 12)
    assert expected == walk(planted.text.order.tolist(), PROMPT[-1], 12)
    for stage in range(7):
        exact = load(store, stage=stage, predictor="oracle", dram_budget="150%")
        assert exactness(exact, stage, PROMPT, expected, logits).max_logit_error <= 1e-4
    assert forced(load(store, stage=5, dram_budget="150%"), PROMPT, expected).chosen == expected
