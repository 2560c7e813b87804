"""Checkpoints as they come: whatever transformers makes of one, flashlite makes of it too, or says why not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, add_predictor, make_model, save_checkpoint
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

import flashlite
from flashlite.bench.dense import load_dense
from flashlite.bench.peers.checkpoint import export
from flashlite.engine.predictor_file import PredictorSet
from flashlite.engine.stages import LADDER
from flashlite.errors import CheckpointError, FlashliteError
from flashlite.storage.checkpoint import Checkpoint
from flashlite.storage.find import open_model
from flashlite.storage.pack import pack
from flashlite.storage.store import Store
from flashlite.storage.tokenizer import encode, generation_config, settings_named, token_windows

EMBEDDING, HEAD = "model.decoder.embed_tokens.weight", "lm_head.weight"
PROMPT = torch.tensor([[5, 17, 99, 4, 64, 23]])
GREEDY = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}


@pytest.fixture
def folder(tiny_model: OPTForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint as transformers itself saves it, to be changed. Its packed forms are this test's own."""
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    tiny_model.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; those that become `...` go."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in (content | changes).items() if v is not ...}))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def tokens(model: OPTForCausalLM, **settings: Any) -> list[int]:
    return model.generate(PROMPT, **GREEDY | settings)[0, PROMPT.shape[1] :].tolist()


def theirs(folder: Path, **settings: Any) -> list[int]:
    return tokens(OPTForCausalLM.from_pretrained(folder).eval(), **settings)


def ours(model: Path | Store, stage: str = "pool", **settings: Any) -> list[int]:
    return tokens(flashlite.load(model, stage=stage, predictor="oracle", dram_budget="2MB"), **settings)


def assert_refused(folder: Path, match: str, out: Path) -> None:
    """Opening, loading and packing fail by the same one line, and leave nothing behind."""
    for act in (lambda: open_model(folder), lambda: flashlite.load(folder), lambda: pack(folder, out)):
        with pytest.raises(CheckpointError, match=match) as error:
            act()
        assert "\n" not in str(error.value)
    assert not out.exists()


# Heads


def own_head(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({HEAD: state[EMBEDDING].flip(0).contiguous()}))


def equal_head(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({HEAD: state[EMBEDDING].clone()}))


def equal_head_in_half(folder: Path) -> None:
    """The same numbers in two dtypes."""
    half = load_file(folder / "model.safetensors")[EMBEDDING].half()
    edit_weights(folder, lambda state: state.update({EMBEDDING: half.float(), HEAD: half}))


def untied(folder: Path) -> None:
    make_model(tie_word_embeddings=False).save_pretrained(folder)


def untied_with_an_equal_head(folder: Path) -> None:
    equal_head(folder)
    edit_json(folder / "config.json", tie_word_embeddings=False)


def head_alone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    save_model(make_model(), str(folder / "model.safetensors"))
    assert HEAD in load_file(folder / "model.safetensors")


def own_head_of_old(folder: Path) -> None:
    """Names as the first checkpoints have them."""
    own_head(folder)
    edit_weights(folder, lambda s: [s.update({name.removeprefix("model."): s.pop(name)}) for name in list(s)])


def own_head_of_a_wrapped_model(folder: Path) -> None:
    own_head(folder)
    edit_weights(folder, lambda state: state.update({"model." + HEAD: state.pop(HEAD)}))


def own_head_in_a_pickle(folder: Path) -> None:
    own_head(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def projected(folder: Path) -> None:
    """A head as narrow as the embedding, as in OPT-350m, but of its own."""
    make_model(word_embed_proj_dim=32, do_layer_norm_before=False).save_pretrained(folder)
    own_head(folder)


HEADS = {
    own_head: True, equal_head: False, equal_head_in_half: False, untied: True, untied_with_an_equal_head: True,
    head_alone: False, own_head_of_old: True, own_head_of_a_wrapped_model: True, own_head_in_a_pickle: True,
    projected: True,
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.__name__)
def test_heads_are_used_as_transformers_uses_them(kind: Callable[[Path], None], folder: Path) -> None:
    kind(folder)
    store = pack(folder, folder.parent / "store")
    store.verify()
    assert (HEAD in store.groups[0].tensors) == HEADS[kind]
    expected = theirs(folder)
    assert tokens(load_dense(store)) == expected
    assert [ours(store, stage) for stage in LADDER] == [expected] * len(LADDER)


def test_a_head_of_its_own_gives_the_logits_and_counts_to_the_budget(folder: Path) -> None:
    tied = pack(folder, folder.parent / "tied")
    own_head(folder)
    store = pack(folder, folder.parent / "store")
    expected = OPTForCausalLM.from_pretrained(folder).eval()(PROMPT).logits
    model = flashlite.load(store, stage=0, predictor="oracle", dram_budget="2MB")
    assert torch.allclose(model(PROMPT).logits, expected, atol=1e-4)
    assert store.weight_bytes == tied.weight_bytes + 128 * 64 * 4
    assert model.get_output_embeddings().weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()


def test_a_head_of_its_own_survives_being_exported_for_peers(folder: Path) -> None:
    own_head(folder)
    exported = export(pack(folder, folder.parent / "store"), folder.parent / "exported")
    assert theirs(exported) == theirs(folder)


def test_an_untied_model_without_a_head_is_refused(folder: Path, tmp_path: Path) -> None:
    edit_json(folder / "config.json", tie_word_embeddings=False)
    assert_refused(folder, r"has no tensor lm_head\.weight: is the checkpoint complete", tmp_path / "out")


def test_a_head_of_another_shape_is_refused(folder: Path, tmp_path: Path) -> None:
    edit_weights(folder, lambda state: state.update({HEAD: torch.zeros(100, 64)}))
    assert_refused(folder, r"lm_head\.weight has shape \(100, 64\)", tmp_path / "out")


def test_a_tensor_of_two_names_is_refused(folder: Path, tmp_path: Path) -> None:
    name = "decoder.layers.0.fc1.bias"
    edit_weights(folder, lambda state: state.update({name: state["model." + name] + 7}))
    assert_refused(folder, f"holds a tensor twice, as {name} and as model.{name}", tmp_path / "out")


# Settings of generation

SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "none": ({}, None),
    "penalty": ({"repetition_penalty": 5.0, "no_repeat_ngram_size": 2}, None),
    "bad words": ({"bad_words_ids": [[12], [51, 69]]}, None),
    "forced ends": ({"forced_bos_token_id": 7, "forced_eos_token_id": 9, "suppress_tokens": [12]}, None),
    "beams": ({"num_beams": 3, "length_penalty": 0.2, "early_stopping": True}, None),
    "null": ({"repetition_penalty": None, "top_k": None}, None),
    "both": ({"repetition_penalty": 5.0}, {"no_repeat_ngram_size": 1}),
    "a file without settings": ({"repetition_penalty": 5.0}, {}),
    "a file that comes from config.json": ({"repetition_penalty": 5.0}, {"_from_model_config": True}),
    "deprecated": ({}, {"penalty_alpha": None, "num_beam_groups": 1, "repetition_penalty": 5.0}),
    "no first token": ({"bos_token_id": None}, None),
    "no last token": ({"eos_token_id": None}, None),
    "no padding": ({"pad_token_id": None}, None),
    "no special tokens": ({"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}, None),
    "special tokens left out": ({"bos_token_id": ..., "eos_token_id": ..., "pad_token_id": ...}, None),
    "two last tokens": ({"eos_token_id": [51, 2]}, None),
    "last token in the file": ({}, {"eos_token_id": 51}),
}  # fmt: skip


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_are_those_that_transformers_reads(kind: str, folder: Path) -> None:
    config, generation = SETTINGS[kind]
    edit_json(folder / "config.json", **config)
    (folder / "generation_config.json").unlink()
    if generation is not None:
        edit_json(folder / "generation_config.json", **generation)
    theirs_config = OPTForCausalLM.from_pretrained(folder).generation_config
    store = open_model(folder)
    assert generation_config(store) == theirs_config
    shortest = {"min_new_tokens": 0}
    assert ours(store, **shortest) == theirs(folder, **shortest)


def test_settings_in_the_configuration_matter(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    plain = theirs(folder)
    edit_json(folder / "config.json", repetition_penalty=5.0, no_repeat_ngram_size=2)
    assert ours(folder) != plain


def test_a_senseless_setting_in_the_configuration_is_one_line(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", cache_implementation="none of them")
    store = open_model(folder)
    with pytest.raises(FlashliteError, match=r"config\.json is damaged: .*; mend it, or pack the model again") as error:
        flashlite.load(store, predictor="oracle", dram_budget="2MB")
    assert "\n" not in str(error.value)


def test_settings_that_fail_in_use_are_named_where_they_stand(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    plain = open_model(folder)
    edit_json(folder / "config.json", repetition_penalty=-1.0)
    store = open_model(folder)
    words = rf"perhaps because of a setting in {store.path}/config\.json: .*strictly positive"
    with pytest.raises(FlashliteError, match=words), settings_named(store):
        ours(store)
    with pytest.raises(ValueError, match="invalid literal"), settings_named(plain):
        int("x")


# Special tokens that a model lacks


class Letters:
    """As much of a tokenizer as is called here: a token for each letter."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 100 for letter in text]}


def test_a_model_without_a_first_token_encodes_and_trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = {}
    for bos in (7, None):
        edit_json(folder / "config.json", bos_token_id=bos)
        store = open_model(folder)
        monkeypatch.setattr("flashlite.storage.tokenizer.load_tokenizer", lambda _: Letters())
        assert encode(Letters(), "ab", store).tolist() == [[97, 98]]
        windows[bos] = token_windows(["x" * 200], store, 1000)[0, :3].tolist()
        if bos is None:
            with pytest.raises(FlashliteError, match="the prompt has no tokens, and the model has no token to begin"):
                encode(Letters(), "", store)
        else:
            assert encode(Letters(), "", store).tolist() == [[7]]
    assert windows == {7: [7, 20, 20], None: [20, 20, 20]}


def test_a_model_without_a_first_token_can_be_benched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flashlite.bench import ladder

    edit_json(folder / "config.json", bos_token_id=None)
    monkeypatch.setattr(ladder, "load_tokenizer", lambda _: Letters())
    ids = ladder.prompt_ids(open_model(folder), 5)
    assert ids == Letters()(ladder.PROMPT)["input_ids"][:5]


# Dtypes

SAID: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "dtype": ({"dtype": "float16"}, torch.float32),
    "of old": ({"dtype": ..., "torch_dtype": "bfloat16"}, torch.float32),
    "both": ({"dtype": "bfloat16", "torch_dtype": "float16"}, torch.float32),
    "null": ({"dtype": None, "torch_dtype": "float16"}, torch.float32),
    "short": ({"dtype": "half"}, torch.float32),
    "weights": ({"dtype": ...}, torch.float16),
    "weights, null": ({"dtype": None}, torch.bfloat16),
    "wider than the weights": ({"dtype": "float32"}, torch.float16),
}


@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_checkpoint_is_packed_in_the_dtype_that_transformers_takes(form: str, kind: str, folder: Path) -> None:
    config, dtype = SAID[kind]
    edit_weights(folder, lambda state: state.update({name: tensor.to(dtype) for name, tensor in state.items()}))
    if form == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    edit_json(folder / "config.json", **config)
    expected = OPTForCausalLM.from_pretrained(folder).dtype
    assert {open_model(folder).dtype, pack(folder, folder.parent / "store").dtype} == {expected}


def test_mixed_weights_are_packed_as_transformers_loads_them(folder: Path) -> None:
    """The first of them by name decides."""
    edit_json(folder / "config.json", dtype=...)
    norms = {name: t.half() for name, t in load_file(folder / "model.safetensors").items() if "norm" not in name}
    edit_weights(folder, lambda state: state.update(norms))
    assert OPTForCausalLM.from_pretrained(folder).dtype == torch.float16
    store = open_model(folder)
    assert store.dtype_name == "fp16"
    assert ours(store, "resident") == ours(pack(folder, folder.parent / "store", "fp16"), "resident")


def test_a_checkpoint_of_doubles_becomes_fp32_with_a_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_weights(folder, lambda state: state.update({name: tensor.double() for name, tensor in state.items()}))
    edit_json(folder / "config.json", dtype="float64")
    assert open_model(folder).dtype_name == "fp32"
    line = "was packed as fp32, because the checkpoint is in float64; dtype= or --dtype chooses another"
    assert [message.partition(f"{folder} ")[2] for message in caplog.messages] == [line]


@pytest.mark.parametrize("said", ["int8", "float8_e4m3fn", "nonsense", "nn", 5, ["float16"], {"": "float16"}], ids=str)
def test_a_dtype_that_no_store_has_is_one_line(said: Any, folder: Path, tmp_path: Path) -> None:
    edit_json(folder / "config.json", dtype=said)
    assert_refused(folder, r"the dtype in config\.json is not fp32, bf16 or fp16: name one", tmp_path / "out")
    assert pack(folder, tmp_path / "out", "fp32").dtype_name == "fp32"


def test_the_own_dtype_is_said_once_and_found_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_json(folder / "config.json", dtype="float16")
    others = [open_model(folder, dtype) for dtype in ("fp32", "bf16")]
    assert caplog.messages == []
    first, again = open_model(folder), open_model(folder)
    assert (first.dtype_name, again.path) == ("fp16", first.path)
    assert len(caplog.messages) == 1
    assert {store.dtype_name for store in others} == {"fp32", "bf16"}
    assert open_model(folder, "fp16").path == first.path


def test_half_of_an_fp16_checkpoint_is_half_of_its_published_size(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({name: tensor.half() for name, tensor in state.items()}))
    edit_json(folder / "config.json", dtype="float16")
    published = sum(t.numel() * 2 for t in load_file(folder / "model.safetensors").values())
    store = open_model(folder)
    assert store.weight_bytes == published
    assert [ours(store, stage) for stage in LADDER] == [theirs(folder)] * len(LADDER)


def test_opt_mini_is_used_in_fp32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path))
    assert open_model("opt-mini").dtype_name == "fp32"


# Files of weights


@pytest.mark.parametrize("shards", [1, 3])
def test_a_pickle_of_the_older_kind_is_read(shards: int, tiny_model: OPTForCausalLM, tmp_path: Path) -> None:
    folder = save_checkpoint(tiny_model, tmp_path / "checkpoint", "bin", shards)
    expected = pack(folder, tmp_path / "expected").manifest["files"]
    for path in folder.glob("*.bin"):
        torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    assert pack(folder, tmp_path / "store").manifest["files"] == expected
    assert Checkpoint(folder).tensor(EMBEDDING).equal(tiny_model.model.decoder.embed_tokens.weight)


def test_tensors_of_an_older_pickle_can_be_read_again(tmp_path: Path) -> None:
    """They are large enough to have pages of their own, which must not be dropped, because no file holds them."""
    model = make_model(vocab_size=5000)
    folder = save_checkpoint(model, tmp_path / "checkpoint", "bin")
    state = torch.load(folder / "pytorch_model.bin")
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    opened = Checkpoint(folder)
    for _ in range(2):
        assert opened.tensor(EMBEDDING).equal(model.model.decoder.embed_tokens.weight)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_other_files_of_weights_are_left_alone(kind: str, tiny_model: OPTForCausalLM, tmp_path: Path) -> None:
    folder = save_checkpoint(tiny_model, tmp_path / "checkpoint", kind)
    expected = pack(folder, tmp_path / "expected").manifest["files"]
    for name in ("adapter_model.safetensors", "model.fp16.safetensors", "optimizer.bin", "a.safetensors"):
        (folder / name).write_bytes(b"other")
    assert pack(folder, tmp_path / "store").manifest["files"] == expected


def test_safetensors_come_before_a_pickle_and_a_file_before_an_index(tmp_path: Path) -> None:
    models = [make_model(seed) for seed in range(4)]
    folder = tmp_path / "checkpoint"
    for model, kind, shards in zip(models, ("bin", "bin", "safetensors", "safetensors"), (2, 1, 2, 1), strict=True):
        save_checkpoint(model, folder, kind, shards)
        assert Checkpoint(folder).tensor(EMBEDDING).equal(model.model.decoder.embed_tokens.weight)
        for index in folder.glob("*.index.json"):
            edit_json(index, metadata={})  # without which transformers can't read it
        assert OPTForCausalLM.from_pretrained(folder).model.decoder.embed_tokens.weight.equal(
            model.model.decoder.embed_tokens.weight
        )


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123\n"
PAGE = "\n<!DOCTYPE html>\n<html><body>Not found</body></html>"
FILES = ["model.safetensors", "pytorch_model.bin", "config.json", "model.safetensors.index.json", "shard.safetensors"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("content", "words"), [(POINTER, "git-lfs pointer.*git lfs pull"), (PAGE, "web page.*again")])
def test_what_clones_and_downloads_leave_instead_is_named(
    content: str, words: str, name: str, folder: Path, tmp_path: Path
) -> None:
    if name != "config.json":
        (folder / "model.safetensors").unlink()
    if name == "shard.safetensors":
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {EMBEDDING: name}}))
    (folder / name).write_text(content)
    assert_refused(folder, f"{name} is a {words}", tmp_path / "out")


def test_a_tokenizer_that_is_a_pointer_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text(POINTER)
    assert_refused(folder, r"tokenizer\.json is a git-lfs pointer", tmp_path / "out")


QUANTIZED: dict[str, Any] = {
    "gptq": {"quant_method": "gptq", "bits": 4}, "awq": {"quant_method": "awq"}, "fp8": {"quant_method": "fp8"},
    "bitsandbytes": {"load_in_8bit": True}, "compressed-tensors": {"quant_method": "compressed-tensors"},
    "unknown": {"bits": 4},
}  # fmt: skip


@pytest.mark.parametrize("method", QUANTIZED)
def test_quantized_checkpoints_are_named(method: str, folder: Path, tmp_path: Path) -> None:
    edit_json(folder / "config.json", quantization_config=QUANTIZED[method])
    assert_refused(folder, rf"is quantized \(quantization_config .* method '{method}'\)", tmp_path / "out")


@pytest.mark.parametrize("settings", ["quantize_config.json", "quant_config.json"])
def test_quantized_checkpoints_of_old_are_named(settings: str, folder: Path, tmp_path: Path) -> None:
    name = "model.decoder.layers.0.fc1.weight"
    packed = {name.replace("weight", "qweight"): torch.zeros(8, 256, dtype=torch.int32)}
    edit_weights(folder, lambda state: (state.pop(name), state.update(packed)))
    (folder / settings).write_text("{}")
    assert_refused(folder, f"has no tensor {name}: is the checkpoint quantized .it has a {settings}", tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.int32, torch.bool])
def test_weights_of_whole_numbers_are_refused_before_anything_is_written(
    dtype: torch.dtype, folder: Path, tmp_path: Path
) -> None:
    name = "model.decoder.layers.2.fc2.weight"
    edit_weights(folder, lambda state: state.update({name: state[name].to(dtype)}))
    assert_refused(folder, f"{name} does not hold plain floating-point numbers: is the model quantized", tmp_path / "o")


@pytest.mark.parametrize("configured", [True, False])
def test_an_adapter_alone_is_named(configured: bool, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    if not configured:
        (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="holds an adapter, not a model: merge it"):
        pack(folder, tmp_path / "out")


def test_an_adapter_beside_a_model_is_left_out_with_a_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert ours(open_model(folder, "fp32")) == theirs(folder)
    assert [line.partition(f"{folder} ")[2] for line in caplog.messages] == [
        "holds an adapter too, which is not used: merge it first"
    ]


def test_a_checkpoint_with_a_manifest_of_something_else_is_no_store(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format": "of something else"}')
    assert ours(folder) == theirs(folder)


# Files that are written


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_every_file_has_the_mode_that_the_umask_gives(
    mask: int, folder: Path, tiny_model: OPTForCausalLM, tmp_path: Path
) -> None:
    from flashlite.cli.options import write_json

    for name in ("tokenizer.json", "merges.txt", "chat_template.jinja"):
        (folder / name).write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "x.jinja").write_text("x")
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)  # as in somebody's private copy
    old = os.umask(mask)
    try:
        store = open_model(folder)
        add_predictor(store, tiny_model)
        (tmp_path / "results").mkdir()
        write_json(tmp_path / "results" / "x.json", {})
        export(store, tmp_path / "results" / "exported")
        written = [store.path.parent, *store.path.parent.rglob("*"), *(tmp_path / "results").rglob("*")]
    finally:
        os.umask(old)
    assert len(written) > 20
    modes = {path: path.stat().st_mode & 0o777 for path in written}
    assert {path: mode for path, mode in modes.items() if mode != (0o777 if path.is_dir() else 0o666) & ~mask} == {}


# Predictors


def shuffled(model: OPTForCausalLM) -> OPTForCausalLM:
    """The same model with the neurons of every layer in another order."""
    other = make_model()
    other.load_state_dict(model.state_dict())
    for layer in other.model.decoder.layers:
        order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for tensor, by in ((layer.fc1.weight, 0), (layer.fc1.bias, 0), (layer.fc2.weight, 1)):
                tensor.copy_(tensor.index_select(by, order))
    return other


def test_a_predictor_for_neurons_in_another_order_is_refused(
    tiny_model: OPTForCausalLM, tiny_store: Store, tmp_path: Path
) -> None:
    other = shuffled(tiny_model)
    assert torch.allclose(other(PROMPT).logits, tiny_model(PROMPT).logits, atol=1e-4)
    store = pack(save_checkpoint(other, tmp_path / "checkpoint"), tmp_path / "store")
    shutil.copyfile(tiny_store.path / "predictor.safetensors", store.path / "predictor.safetensors")
    for act in (lambda: PredictorSet.load(store), lambda: flashlite.load(store, dram_budget="2MB")):
        with pytest.raises(FlashliteError, match="was trained for other weights than this store's; train") as error:
            act()
        assert "\n" not in str(error.value)
    assert flashlite.load(store, predictor="oracle", dram_budget="2MB").flash.store.path == store.path


@pytest.mark.parametrize("change", ["weight", "bias", "last layer"])
def test_a_predictor_is_bound_to_all_that_decides_what_fires(
    change: str, tiny_model: OPTForCausalLM, tiny_store: Store, tmp_path: Path
) -> None:
    other = make_model()
    other.load_state_dict(tiny_model.state_dict())
    layer = other.model.decoder.layers[2 if change == "last layer" else 0]
    with torch.no_grad():
        (layer.fc1.bias if change == "bias" else layer.fc1.weight)[-1].mul_(1.1)
    store = pack(save_checkpoint(other, tmp_path / "checkpoint"), tmp_path / "store")
    assert store.up_projections != tiny_store.up_projections


def test_a_predictor_is_good_for_every_dtype_and_layout_of_its_checkpoint(
    tiny_model: OPTForCausalLM, tiny_store: Store, folder: Path, tmp_path: Path
) -> None:
    predictor = (tiny_store.path / "predictor.safetensors").read_bytes()
    for dtype in ("fp32", "bf16", "fp16"):
        for layouts in (("split",), ("bundled",)):
            store = pack(folder, tmp_path / f"{dtype}-{layouts[0]}", dtype, layouts)
            (store.path / "predictor.safetensors").write_bytes(predictor)
            assert PredictorSet.load(store).up_projections == tiny_store.up_projections
    again = pack(export(tiny_store, tmp_path / "exported"), tmp_path / "again")
    assert again.up_projections == tiny_store.up_projections


def test_a_model_without_biases_has_predictors_too(tmp_path: Path) -> None:
    model = OPTForCausalLM(OPTConfig(**TINY, enable_bias=False))
    store = pack(save_checkpoint(model, tmp_path / "checkpoint"), tmp_path / "store")
    assert len(store.up_projections or "") == 64
