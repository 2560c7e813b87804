"""Files and prompts from others' hands: nothing in them is run, and what is senseless is one line, soon."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY, call, save_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import OPTForCausalLM, PreTrainedTokenizerFast

import flashlite
from flashlite.cli import main as cli
from flashlite.engine.predictor_file import PredictorSet, signed
from flashlite.engine.stages import LADDER
from flashlite.errors import CheckpointError, FlashliteError, PredictorError, StoreError
from flashlite.families.configured import LARGEST as LARGEST_SIZES
from flashlite.storage.checkpoint import Checkpoint
from flashlite.storage.pack import pack
from flashlite.storage.store import MANIFEST, PREDICTOR, RESIDENT, Store, sealed
from flashlite.storage.strict_json import LARGEST, parse_object
from flashlite.storage.tokenizer import encode, generation_config, load_tokenizer, token_windows

FC1 = "model.decoder.layers.1.fc1.weight"
AMPLE = "2MB"  # every neuron of the tiny model finds room
QUICK = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
OTHER_FIELDS = (
    "do_layer_norm_before", "_remove_final_layer_norm", "enable_bias", "layer_norm_elementwise_affine",
    "tie_word_embeddings", "activation_function", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
PROMPT = torch.arange(3, 12)[None]


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be spoilt."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def copy(tiny_store: Store, tmp_path: Path) -> Path:
    """A copy of the tiny store, to be spoilt."""
    return Path(shutil.copytree(tiny_store.path, tmp_path / "store-copy"))


@pytest.fixture(scope="module")
def opt_mini(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The bundled model, whose tokenizer takes any bytes."""
    return pack("opt-mini", tmp_path_factory.mktemp("untrusted") / "opt-mini", layouts=("bundled",))


def assert_one_line(kind: type[Exception], act: Callable[[], object], words: str | None = None) -> None:
    """The act must fail by an error of flashlite's own, in one line."""
    with pytest.raises(kind, match=words) as error:
        act()
    assert "\n" not in str(error.value)


def error_of(act: Callable[[], object]) -> str:
    """What flashlite's own error says if the act fails by one, empty if it doesn't fail."""
    try:
        act()
    except FlashliteError as error:
        return str(error)
    return ""


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place, and a manifest's checksum with it, so that deeper checks are reached."""
    content = json.loads(path.read_text())
    change(content)
    if path.name != MANIFEST:
        path.write_text(json.dumps(content))
    else:
        content.pop("sha256", None)
        path.write_text(sealed(content))


# Pickles


class Trap:
    """An object whose unpickling creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.target), "w")


def save_tar(content: object, path: Path) -> None:
    """Write a tar archive as torch did before version 0.1.10; its parts are pickles."""
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(content)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


FORMATS: dict[str, Callable[[object, Path], object]] = {
    "zip": torch.save,
    "legacy": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content)),
    "tar": save_tar,
}


@pytest.mark.parametrize("place", ["plain", "shard", "safetensors", "predictor", "resident"])
@pytest.mark.parametrize("form", FORMATS)
def test_code_in_a_pickle_is_never_run(
    form: str, place: str, tiny_model: OPTForCausalLM, copy: Path, tmp_path: Path
) -> None:
    target, trap = tmp_path / "target", tmp_path / "trap"
    FORMATS[form]({FC1: Trap(target)}, trap)
    with contextlib.suppress(Exception):
        torch.load(trap, weights_only=False)
    assert target.exists(), "the trap must work"
    target.unlink()
    if place in {"predictor", "resident"}:
        shutil.copyfile(trap, copy / {"predictor": PREDICTOR, "resident": RESIDENT}[place])
        assert_one_line(FlashliteError, lambda: flashlite.load(copy, dram_budget=AMPLE), "damaged")
    else:
        kind, shards = ("safetensors" if place == "safetensors" else "bin"), (2 if place == "shard" else 1)
        folder = save_checkpoint(tiny_model, tmp_path / "checkpoint", kind, shards)
        shutil.copyfile(trap, sorted(folder.glob(f"*.{kind}"))[0])
        assert_one_line(CheckpointError, lambda: pack(folder, tmp_path / "store"), "cannot be read as weights")
    assert not target.exists()


STRANGE_TENSORS = {
    "integers": lambda shape: torch.zeros(shape, dtype=torch.int8),
    "sparse": lambda shape: torch.zeros(shape).to_sparse(),
    "meta": lambda shape: torch.empty(shape, device="meta"),
    "complex": lambda shape: torch.zeros(shape, dtype=torch.complex64),
    "float8": lambda shape: torch.zeros(shape, dtype=torch.float8_e4m3fn),  # whose scales are elsewhere
}


@pytest.mark.parametrize("kind", STRANGE_TENSORS)
def test_tensors_that_hold_no_plain_numbers_are_refused(kind: str, tiny_model: OPTForCausalLM, tmp_path: Path) -> None:
    """Weights of a quantized model, say, would be packed as numbers that mean something else."""
    folder = save_checkpoint(tiny_model, tmp_path / "checkpoint", "bin")
    state = torch.load(folder / "pytorch_model.bin")
    torch.save(state | {FC1: STRANGE_TENSORS[kind](state[FC1].shape)}, folder / "pytorch_model.bin")
    assert_one_line(CheckpointError, lambda: pack(folder, tmp_path / "store"), "plain floating-point|cannot be read")
    assert not (tmp_path / "store").exists()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_has_no_name_or_shape_is_none_of_a_pickles_tensors(tiny_model: OPTForCausalLM, tmp_path: Path) -> None:
    folder = save_checkpoint(tiny_model, tmp_path / "checkpoint", "bin")
    state = torch.load(folder / "pytorch_model.bin")
    torch.save(state | {5: state[FC1], None: state[FC1]}, folder / "pytorch_model.bin")
    pack(folder, tmp_path / "store").verify()
    torch.save(state | {FC1: torch.nested.nested_tensor([torch.zeros(64)] * 256)}, folder / "pytorch_model.bin")
    assert_one_line(CheckpointError, lambda: pack(folder, tmp_path / "other"), "has no tensor|cannot be read")


# Paths


@pytest.mark.parametrize(
    "shard", ["..", ".", "", "../x.bin", "..\\x.bin", "/etc/passwd", "a/../x.bin", "x\0.bin", "\ud800"]
)
def test_a_shard_is_a_file_of_the_folder_itself(shard: str, tiny_model: OPTForCausalLM, tmp_path: Path) -> None:
    folder = save_checkpoint(tiny_model, tmp_path / "checkpoint", "bin", shards=2)
    torch.save({FC1: torch.zeros(256, 64)}, tmp_path / "x.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {FC1: shard}}))
    assert_one_line(CheckpointError, lambda: pack(folder, tmp_path / "store"), "outside its folder|lacks the shard")


def test_links_to_weights_are_followed_as_in_the_hubs_cache(
    tiny_model: OPTForCausalLM, tiny_store: Store, tmp_path: Path
) -> None:
    folder = save_checkpoint(tiny_model, tmp_path / "snapshot", "bin", shards=2)
    (tmp_path / "blobs").mkdir()
    for path in sorted(folder.iterdir()):
        path.rename(tmp_path / "blobs" / path.name)
        path.symlink_to(Path("../blobs") / path.name)
    assert pack(folder, tmp_path / "store").manifest["files"] == tiny_store.manifest["files"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_in_place_of_a_file_does_not_hang(name: str, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    assert_one_line(CheckpointError, lambda: pack(checkpoint, tmp_path / "store"))


@pytest.mark.parametrize("name", [MANIFEST, RESIDENT, PREDICTOR])
def test_a_pipe_in_a_store_does_not_hang(name: str, copy: Path) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert_one_line(FlashliteError, lambda: flashlite.load(Store(copy), dram_budget=AMPLE))


# Code that a configuration names

EVIL = "open({!r}, 'w')\nclass Evil: pass\n"
NAMES_CODE = {
    "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}, "trust_remote_code": True,
    "attn_implementation": "someone/kernel", "_attn_implementation": "someone/kernel",
    "_attn_implementation_internal": "someone/kernel", "_name_or_path": "../evil", "name_or_path": "../evil",
    "custom_generate": "evil",
}  # fmt: skip


@pytest.mark.parametrize("field", NAMES_CODE)
def test_code_that_a_configuration_names_is_left_alone(
    field: str, checkpoint: Path, tiny_model: OPTForCausalLM, tiny_store: Store, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    (checkpoint / "evil.py").write_text(EVIL.format(str(target)))
    edit(checkpoint / "config.json", lambda config: config.update({field: NAMES_CODE[field]}))
    store = pack(checkpoint, tmp_path / "store")
    assert store.manifest["files"] == tiny_store.manifest["files"]
    model = flashlite.load(store, dram_budget=AMPLE, predictor="oracle")
    assert torch.allclose(model(PROMPT).logits, tiny_model(PROMPT).logits, atol=1e-4)
    assert not target.exists()
    assert sorted(path.name for path in store.path.glob("*.py")) == []


def test_code_that_a_tokenizer_names_is_not_run_and_nobody_is_asked(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    (copy / "evil.py").write_text(EVIL.format(str(target)))
    names = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    (copy / "tokenizer_config.json").write_text(json.dumps(names))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    assert_one_line(FlashliteError, lambda: load_tokenizer(Store(copy)), "does not hold a tokenizer that can be loaded")
    assert not target.exists()


def test_a_pipe_in_place_of_a_copied_file_is_one_line(copy: Path) -> None:
    (copy / "tokenizer.json").unlink(missing_ok=True)
    os.mkfifo(copy / "tokenizer.json")
    edit(copy / MANIFEST, lambda manifest: manifest["copied"].update({"tokenizer.json": ""}))
    assert_one_line(StoreError, Store(copy).verify, "tokenizer.json is not a file")


def test_a_name_that_cannot_be_printed_is_one_line(copy: Path) -> None:
    content = (copy / RESIDENT).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["x\ny"] = header.pop(next(iter(header)))
    text = json.dumps(header).encode()
    (copy / RESIDENT).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    assert_one_line(StoreError, lambda: Store(copy), "a name that can't be printed")


SETTINGS: dict[str, Any] = {
    "stops": {"stop_strings": ["x"]}, "end": {"eos_token_id": "x"}, "bad words": {"bad_words_ids": [[1000000]]},
    "forced": {"forced_eos_token_id": 10**9}, "penalty": {"repetition_penalty": -1.0}, "time": {"max_time": "x"},
    "cache": {"cache_implementation": "quantized"}, "early": {"assistant_early_exit": 1},
    "mark": {"watermarking_config": {"x": 1}},
}  # fmt: skip


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_that_cannot_be_followed_are_one_line_that_names_them(
    kind: str, opt_mini: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Path(shutil.copytree(opt_mini.path, tmp_path / "store"))
    (store / "generation_config.json").write_text(json.dumps(SETTINGS[kind]))
    code, _, err = call(monkeypatch, capsys, "run", store, "--max-new-tokens", 2)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "generation_config.json" in err


def test_beams_that_a_model_brings_along_are_no_matter_to_run(
    opt_mini: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Path(shutil.copytree(opt_mini.path, tmp_path / "store"))
    (store / "generation_config.json").write_text(json.dumps({"num_beams": 2}))
    assert call(monkeypatch, capsys, "run", store, "--max-new-tokens", 2)[0] == 0


# JSON

SENSELESS = {
    "deep": b'{"a":' * 200_000, "deep list": b'{"a":' + b"[" * 200_000, "large": b" " * (LARGEST + 1),
    "twice": b'{"a": 1, "a": 2}', "twice inside": b'{"a": {"b": 1, "b": 1}}', "nan": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}', "latin": b'{"a": "\xe9"}', "utf-16": '{"a": 1}'.encode("utf-16"), "empty": b"",
    "list": b"[]", "long number": b'{"a": ' + b"9" * 5000 + b"}", "cut": b'{"a": ', "binary": bytes(range(256)),
}  # fmt: skip


@pytest.mark.parametrize("kind", SENSELESS)
def test_senseless_json_is_one_line(kind: str, checkpoint: Path, copy: Path, tmp_path: Path) -> None:
    content, out = SENSELESS[kind], tmp_path / "store"
    with pytest.raises(ValueError, match=r"\w") as error:
        parse_object(content)
    assert "\n" not in str(error.value)
    (copy / "generation_config.json").write_bytes(content)
    assert_one_line(StoreError, lambda: generation_config(Store(copy)), "generation_config.json is damaged")
    (copy / MANIFEST).write_bytes(content)
    assert_one_line(StoreError, lambda: Store(copy), "manifest.json is damaged")
    (checkpoint / "model.safetensors.index.json").write_bytes(content)
    (checkpoint / "model.safetensors").rename(checkpoint / "other")
    assert_one_line(CheckpointError, lambda: pack(checkpoint, out), "index.json is not valid JSON")
    (checkpoint / "config.json").write_bytes(content)
    assert_one_line(CheckpointError, lambda: pack(checkpoint, out), "config.json is not valid JSON")


def test_of_a_file_larger_than_memory_little_is_read(copy: Path) -> None:
    os.truncate(copy / MANIFEST, 2**40)
    assert_one_line(StoreError, lambda: Store(copy), f"it has more than {LARGEST} bytes")


@pytest.mark.parametrize("kind", SENSELESS)
def test_senseless_headers_are_one_line(kind: str, copy: Path) -> None:
    header = SENSELESS[kind][:LARGEST]
    (copy / RESIDENT).write_bytes(struct.pack("<Q", len(header)) + header + bytes(4096))
    assert_one_line(StoreError, lambda: Store(copy), "is damaged")


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_senseless_lengths_of_a_header_are_one_line(length: int, copy: Path, checkpoint: Path, tmp_path: Path) -> None:
    store = Store(copy)
    for path in (copy / RESIDENT, copy / PREDICTOR, checkpoint / "model.safetensors"):
        content = path.read_bytes()
        path.write_bytes(struct.pack("<Q", length) + content[8:])
    assert_one_line(StoreError, lambda: Store(copy), "is damaged")
    assert_one_line(PredictorError, lambda: PredictorSet.load(store), "is damaged")
    assert_one_line(CheckpointError, lambda: pack(checkpoint, tmp_path / "store"), "cannot be read as weights")


# Numbers

BAD_SIZES = [0, -1, 10**9, 10**12, 10**30, 64.0, 1e308, "64", True, [64], {}]


@pytest.mark.parametrize("size", BAD_SIZES, ids=str)
@pytest.mark.parametrize("field", LARGEST_SIZES)
def test_sizes_that_no_model_has_are_named(field: str, size: object, checkpoint: Path, copy: Path) -> None:
    """Refused before anything of that size is made."""
    edit(checkpoint / "config.json", lambda config: config.update({field: size}))
    assert_one_line(
        CheckpointError,
        lambda: Checkpoint(checkpoint),
        rf"config\.json does not describe a model of type opt: {field} is",
    )
    edit(copy / MANIFEST, lambda manifest: manifest["config"].update({field: size}))
    assert_one_line(StoreError, lambda: Store(copy), rf"manifest\.json is damaged .*{field} is")


@pytest.mark.parametrize("alignment", [0, -4096, 3, 4096.0, "4096", True, 2**40, None], ids=str)
def test_alignments_that_no_drive_has_are_named(alignment: object, copy: Path) -> None:
    edit(copy / MANIFEST, lambda manifest: manifest.update(alignment=alignment))
    assert_one_line(StoreError, lambda: Store(copy), "is damaged .*an alignment of .* is not a power of two")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)


@QUICK
@given(changes=st.dictionaries(st.sampled_from([*LARGEST_SIZES, *OTHER_FIELDS, "model_type", "dtype"]), JSON_VALUES))
def test_any_configuration_opens_or_is_one_line(changes: dict[str, Any], tiny_checkpoint: Path) -> None:
    folder = tiny_checkpoint.parent / "fuzzed"
    shutil.copytree(tiny_checkpoint, folder, dirs_exist_ok=True)
    edit(folder / "config.json", lambda config: config.update(changes))
    assert "\n" not in error_of(lambda: Checkpoint(folder).shape(FC1))


PLACES = [
    ("format",), ("name",), ("dtype",), ("layouts",), ("alignment",), ("config",), ("files",), ("files", RESIDENT),
    ("files", RESIDENT, "bytes"), ("files", RESIDENT, "sha256"), *(("config", name) for name in LARGEST_SIZES),
    *(("config", name) for name in OTHER_FIELDS),
]  # fmt: skip


@QUICK
@given(place=st.sampled_from(PLACES), value=JSON_VALUES)
def test_any_manifest_opens_and_loads_or_is_one_line(
    place: tuple[str, ...], value: object, tiny_store: Store, tmp_path: Path
) -> None:
    folder = tmp_path / "fuzzed"
    shutil.copytree(tiny_store.path, folder, dirs_exist_ok=True)

    def change(manifest: dict[str, Any]) -> None:
        for key in place[:-1]:
            manifest = manifest[key]
        manifest[place[-1]] = value

    edit(folder / MANIFEST, change)
    assert "\n" not in error_of(lambda: flashlite.load(folder, dram_budget=AMPLE, stage=1)(PROMPT))


@QUICK
@given(name=st.sampled_from([RESIDENT, PREDICTOR]), position=st.integers(0, 4095), byte=st.integers(0, 255))
def test_any_byte_of_a_header_may_be_wrong(
    name: str, position: int, byte: int, tiny_store: Store, tmp_path: Path
) -> None:
    folder = tmp_path / "fuzzed"
    shutil.copytree(tiny_store.path, folder, dirs_exist_ok=True)
    content = bytearray((folder / name).read_bytes())
    content[position] = byte
    (folder / name).write_bytes(content)
    assert "\n" not in error_of(lambda: flashlite.load(folder, dram_budget=AMPLE)(PROMPT))


def test_resident_weights_of_another_model_are_refused(copy: Path) -> None:
    """With a manifest that agrees with the file, so that only the configuration tells."""
    for change in ({"model.decoder.embed_tokens.weight": None}, {"model.decoder.layers.7.fc1.bias": torch.zeros(4)}):
        state = load_file(copy / RESIDENT) | {n: t for n, t in change.items() if t is not None}
        save_file({n: t for n, t in state.items() if n not in change or change[n] is not None}, copy / RESIDENT)
        content = (copy / RESIDENT).read_bytes()
        header = hashlib.sha256(content[: 8 + int.from_bytes(content[:8], "little")]).hexdigest()
        entry = {"bytes": len(content), "header": header, "sha256": dict.fromkeys(load_file(copy / RESIDENT), "")}
        edit(copy / MANIFEST, lambda manifest, entry=entry: manifest["files"].update({RESIDENT: entry}))
        assert_one_line(StoreError, lambda: Store(copy), "holds other weights than the manifest's configuration")


def save_predictor(tensors: dict[str, torch.Tensor], reports: str, path: Path) -> None:
    """As flashlite writes it, with the right checksum."""
    save_file(tensors, path, signed(tensors, reports, Store(path.parent).up_projections))


REPORTS: dict[str, Any] = {
    "none": [], "too few": [{}], "deep": "deep", "text": [{"window_rows": ["x"]}],
    "nan": [{"window_rows": [float("nan")]}], "infinite": [{"window_rows": [float("inf")]}],
    "negative": [{"window_rows": [-1.0]}], "no window": [{"window_rows": []}], "object": {"a": 1},
    "long number": [{"window_rows": [10**400]}], "far apart": [{"window_rows": [0.0]}, {"window_rows": [1e308]}, {}],
    "negative share": [{"recall": -0.5}], "infinite share": [{"active": float("inf")}], "no share": [{"recall": None}],
}  # fmt: skip
WRONG_PREDICTOR = "is damaged or another model's: .*; train the predictor again|was trained for another model"


@pytest.mark.parametrize("kind", REPORTS)
def test_senseless_reports_of_a_predictor_are_one_line(kind: str, copy: Path, tiny_store: Store) -> None:
    reports = [vars(report) for report in PredictorSet.load(Store(copy)).reports]
    if isinstance(given := REPORTS[kind], list):
        given = [report | change for report, change in zip(reports, given * 3 if kind != "too few" else given)]  # noqa: B905
    text = "[" * 200_000 if kind == "deep" else json.dumps(given)
    save_predictor(load_file(copy / PREDICTOR), text, copy / PREDICTOR)
    assert_one_line(PredictorError, lambda: flashlite.load(copy, dram_budget=AMPLE), WRONG_PREDICTOR)


def test_a_predictor_saved_anew_is_as_good(copy: Path, tiny_store: Store) -> None:
    """So that those above and below are refused for what was changed in them alone."""
    reports = PredictorSet.load(Store(copy)).reports
    save_predictor(load_file(copy / PREDICTOR), json.dumps([vars(report) for report in reports]), copy / PREDICTOR)
    assert PredictorSet.load(Store(copy)).reports == reports


@pytest.mark.parametrize("metadata", ["null", "[]", "5", '"x"', '{"format": 2}', '{"format": null}'])
def test_a_predictor_that_says_nothing_of_itself_is_one_line(metadata: str, copy: Path) -> None:
    content = (copy / PREDICTOR).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = {**json.loads(content[8 : 8 + length]), "__metadata__": json.loads(metadata)}
    text = json.dumps(header).encode()
    (copy / PREDICTOR).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    assert_one_line(PredictorError, lambda: flashlite.load(copy, dram_budget=AMPLE), "damaged|another format")


def test_a_predictor_larger_than_any_is_not_read(copy: Path) -> None:
    os.truncate(copy / PREDICTOR, 2**42)  # of which the drive holds next to nothing
    assert_one_line(PredictorError, lambda: flashlite.load(copy, dram_budget=AMPLE), "larger than any predictor")


def test_a_predictor_of_another_format_is_one_line(copy: Path) -> None:
    save_file(load_file(copy / PREDICTOR), copy / PREDICTOR, {"format": "1", "reports": "[]"})
    assert_one_line(PredictorError, lambda: flashlite.load(copy, dram_budget=AMPLE), "has another format than")


@pytest.mark.parametrize("part", ["a", "a_scale", "b", "b_scale", "bias"])
def test_predictors_of_another_dtype_are_one_line(part: str, copy: Path, tiny_store: Store) -> None:
    reports = [vars(report) for report in PredictorSet.load(Store(copy)).reports]
    state = load_file(copy / PREDICTOR)
    state[f"layers.1.{part}"] = state[f"layers.1.{part}"].double()
    save_predictor(state, json.dumps(reports), copy / PREDICTOR)
    assert_one_line(PredictorError, lambda: flashlite.load(copy, dram_budget=AMPLE), WRONG_PREDICTOR)


@pytest.mark.parametrize("rank", [1, 31, 33])
def test_predictors_that_torch_would_read_beyond_are_one_line(rank: int, copy: Path, tiny_store: Store) -> None:
    """Its int8 product takes whole blocks, whether or not the matrix ends before."""
    reports = [vars(report) for report in PredictorSet.load(Store(copy)).reports]
    state = load_file(copy / PREDICTOR)
    for name in list(state):
        if ".a" in name:
            state[name] = state[name][:rank].contiguous()
        elif name.endswith(".b"):
            state[name] = state[name][:, :rank].contiguous()
    save_predictor(state, json.dumps(reports), copy / PREDICTOR)
    assert_one_line(PredictorError, lambda: flashlite.load(copy, dram_budget=AMPLE), "not multiples of 32: change")


# Tokenizers

TOKENIZERS = {
    "empty": b"", "cut": b'{"version": "1.0", "model": {', "list": b"[]", "null": b"null", "no model": b"{}",
    "deep": b'{"a":' * 5000, "latin": b'{"a": "\xe9"}',
    "bad model": b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": [["a"]]}}',
}  # fmt: skip


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_malformed_tokenizers_are_one_line(kind: str, copy: Path) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    (copy / "tokenizer.json").write_bytes(TOKENIZERS[kind])
    assert_one_line(FlashliteError, lambda: load_tokenizer(Store(copy)), "does not hold a tokenizer that can be loaded")


TOKENIZER_SETTINGS = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"5",
    b'{"a":' * 5000,
    b'{"tokenizer_class": 5}',
    b'{"tokenizer_class": "No"}',
]


@pytest.mark.parametrize("content", TOKENIZER_SETTINGS, ids=range(len(TOKENIZER_SETTINGS)))
def test_malformed_settings_of_a_tokenizer_are_one_line(content: bytes, copy: Path) -> None:
    (copy / "tokenizer_config.json").write_bytes(content)
    assert_one_line(FlashliteError, lambda: load_tokenizer(Store(copy)), "does not hold a tokenizer that can be loaded")


def test_a_store_without_tokenizer_says_so(copy: Path) -> None:
    assert_one_line(FlashliteError, lambda: load_tokenizer(Store(copy)), "does not hold a tokenizer that can be loaded")


def test_tokens_that_the_model_lacks_are_named(tiny_store: Store) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "here": 5, "beyond": TINY["vocab_size"]}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert encode(tokenizer, "here", tiny_store).tolist() == [[5]]
    assert_one_line(
        FlashliteError, lambda: encode(tokenizer, "beyond", tiny_store), "gives the token 128, the model has"
    )


def test_a_text_whose_tokens_the_model_lacks_is_named(copy: Path) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": TINY["vocab_size"]}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(copy)
    assert_one_line(
        FlashliteError, lambda: token_windows(["x"], Store(copy), 100), "gives the token 128, the model has"
    )


# Prompts

PROMPTS = {
    "empty": "", "blank": " \n\t", "nul": "a\0b", "escape": "\x1b[31mred\x1b[0m", "backspace": "a\b\b\x7f",
    "c1": "\x80\x9f", "right to left": "\u202eאבג", "family": "👩‍👩‍👧‍👦",
    "combining": "e" + "\u0301" * 50, "cjk": "模型 = 1", "private": "\ue000\U0010ffff",
    "byte order mark": "\ufeffx", "special tokens": "</s><pad><unk>", "line ends": "a\r\nb\rc\u2028d",
}  # fmt: skip


@pytest.mark.parametrize("kind", PROMPTS)
def test_any_prompt_is_continued(
    kind: str, opt_mini: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(monkeypatch, capsys, "run", opt_mini.path, "--prompt", PROMPTS[kind], "--max-new-tokens", 2)
    assert (code, err) == (0, "")
    assert re.match(r"\[[12] calls", out.splitlines()[-1])


@settings(QUICK, max_examples=150)
@given(prompt=st.text(st.characters(exclude_categories=[]), max_size=300))
def test_any_text_becomes_tokens_that_give_it_back_or_one_line(prompt: str, opt_mini: Store) -> None:
    tokenizer, positions = load_tokenizer(opt_mini), opt_mini.config.max_position_embeddings
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        assert_one_line(FlashliteError, lambda: encode(tokenizer, prompt, opt_mini), "not valid UTF-8")
    elif "fill all" not in error_of(lambda: encode(tokenizer, prompt, opt_mini)):
        ids = encode(tokenizer, prompt, opt_mini)[0]
        assert 1 <= len(ids) < positions
        assert prompt in tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    else:
        assert len(prompt.encode()) + 1 >= positions


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("word " * 3000, "tokens fill all 512 positions of the model: shorten it"),
        ("a\udcff", "not valid UTF-8 at character 1"),
        ("\ud83d", "not valid UTF-8 at character 0"),
    ],
    ids=["long", "byte", "half a pair"],
)
def test_prompts_that_cannot_be_continued_are_one_line(
    prompt: str, words: str, opt_mini: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(monkeypatch, capsys, "run", opt_mini.path, "--prompt", prompt)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert words in err


def test_a_prompt_leaves_a_position_free(tiny_store: Store) -> None:
    def tokens_of(prompt: str, verbose: bool) -> dict[str, list[int]]:
        return {"input_ids": [5] * len(prompt)}

    assert encode(tokens_of, "x" * 127, tiny_store).shape == (1, 127)
    assert_one_line(
        FlashliteError, lambda: encode(tokens_of, "x" * 128, tiny_store), "128 tokens fill all 128 positions"
    )


def test_bytes_that_are_no_utf_8_are_one_line_in_a_real_process(opt_mini: Store) -> None:
    command = [sys.executable, "-m", "flashlite", "run", opt_mini.path, "--prompt", b"ok \xff\xfe"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    line = b"flashlite: the prompt is not valid UTF-8 at character 3: write it as UTF-8"
    assert done.stderr.splitlines() == [line]


def test_a_terminal_that_lacks_the_letters_gets_others(opt_mini: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    monkeypatch.setattr(sys, "argv", ["flashlite", "run", str(opt_mini.path), "--prompt", "s = '模型 👍'"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert b"s = '?? ?'" in written.getvalue()


def test_more_tokens_than_positions_are_one_line_and_leave_the_model_usable(
    tiny_store: Store, tiny_model: OPTForCausalLM
) -> None:
    model, positions = (
        flashlite.load(tiny_store, dram_budget=AMPLE, predictor="oracle"),
        TINY["max_position_embeddings"],
    )
    ids = torch.randint(3, 128, (1, positions + 1), generator=torch.Generator().manual_seed(0))
    words = f"{positions + 1} tokens don't fit the model's {positions} positions"
    assert_one_line(FlashliteError, lambda: model(ids), words)
    assert_one_line(FlashliteError, lambda: model.generate(ids[:, :-2], max_new_tokens=5, min_new_tokens=5), words)
    assert torch.allclose(model(ids[:, :-1]).logits, tiny_model(ids[:, :-1]).logits, atol=1e-4)


@pytest.mark.parametrize("stage", range(len(LADDER)))
@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[5, TINY["vocab_size"]]], f"token {TINY['vocab_size']} is not one of the model's {TINY['vocab_size']}"),
        ([[2**40, 7, 5]], f"token {2**40} is not one of the model's"),
        ([[5, -1]], "token -1 is not one of the model's"),
    ],
    ids=["next", "far", "negative"],
)
def test_tokens_that_the_model_lacks_are_one_line_and_leave_it_usable(
    stage: int, ids: list[list[int]], words: str, tiny_store: Store, tiny_model: OPTForCausalLM
) -> None:
    model = flashlite.load(tiny_store, dram_budget=AMPLE, predictor="oracle", stage=stage)
    wrong, right = torch.tensor(ids, dtype=torch.int64), torch.arange(5, 15)[None]
    assert_one_line(FlashliteError, lambda: model(wrong), words)
    assert_one_line(FlashliteError, lambda: model.generate(wrong, max_new_tokens=3), words)
    assert torch.allclose(model(right).logits, tiny_model(right).logits, atol=1e-4)
