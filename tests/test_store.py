"""Stores: what packing writes is the checkpoint, byte for byte, and every damage to it is found and named."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model, save_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import OPTForCausalLM

import flashlite
from flashlite.errors import CheckpointError, StoreError
from flashlite.storage.bundle import FFNShape, pack_bundles, unpack_bundles
from flashlite.storage.pack import pack
from flashlite.storage.safetensors_file import DTYPES, SafetensorsWriter, read_extents
from flashlite.storage.store import CHECKSUMS, FORMAT, MANIFEST, NEWEST, RESIDENT, Store, ffn_file, sealed
from flashlite.storage.strict_json import LARGEST

SPLIT, BUNDLED = ffn_file("split"), ffn_file("bundled")
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(scope="module")
def packed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """The tiny checkpoint as a store of each dtype."""
    folder = tmp_path_factory.mktemp("packed")
    return {dtype: pack(tiny_checkpoint, folder / dtype, dtype) for dtype in DTYPES}


@pytest.fixture
def copy(tiny_store: Store, tmp_path: Path) -> Path:
    """A copy of the tiny store, to be damaged."""
    return Path(shutil.copytree(tiny_store.path, tmp_path / "copy"))


def raw(tensor: Tensor) -> Tensor:
    """A tensor's bytes."""
    return tensor.detach().clone(memory_format=torch.contiguous_format).view(torch.uint8)


def contents(folder: Path) -> dict[str, str]:
    """The digest of every file under a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def broken_checkpoint(folder: Path) -> Path:
    """A checkpoint that lacks a tensor of its last layer, which is noticed only after most is written."""
    save_checkpoint(make_model(), folder)
    state = load_file(folder / "model.safetensors")
    del state["model.decoder.layers.2.fc2.weight"]
    save_file(state, folder / "model.safetensors")
    return folder


def edit_manifest(store: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a store's manifest in place, and its checksum with it."""
    manifest = json.loads((store / MANIFEST).read_text())
    edit(manifest)
    manifest.pop("sha256", None)
    (store / MANIFEST).write_text(sealed(manifest))


def assert_refused(store: Path, match: str) -> None:
    """Opening must fail with one line."""
    with pytest.raises(StoreError, match=match) as error:
        Store(store)
    assert "\n" not in str(error.value)


# What packing writes


@EVERY_DTYPE
def test_split_layout_is_the_published_weights_byte_for_byte(
    dtype: str, packed: dict[str, Store], tiny_model: OPTForCausalLM
) -> None:
    tensors = load_file(packed[dtype].path / SPLIT)
    for i, layer in enumerate(tiny_model.model.decoder.layers):
        assert torch.equal(tensors.pop(f"layers.{i}.up"), raw(layer.fc1.weight.to(DTYPES[dtype])))
        assert torch.equal(tensors.pop(f"layers.{i}.down"), raw(layer.fc2.weight.T.to(DTYPES[dtype])))
    assert not tensors


@EVERY_DTYPE
def test_bundled_layout_is_the_published_weights_byte_for_byte(
    dtype: str, packed: dict[str, Store], tiny_model: OPTForCausalLM
) -> None:
    tensors, half = load_file(packed[dtype].path / BUNDLED), packed[dtype].shape.half_bytes
    for i, layer in enumerate(tiny_model.model.decoder.layers):
        bundle = tensors.pop(f"layers.{i}.bundle")
        assert bundle.shape == (256, packed[dtype].shape.record_bytes)
        assert torch.equal(bundle[:, :half], raw(layer.fc1.weight.to(DTYPES[dtype])))
        assert torch.equal(bundle[:, half : 2 * half], raw(layer.fc2.weight.T.to(DTYPES[dtype])))
        assert not bundle[:, 2 * half :].any()
    assert not tensors


@EVERY_DTYPE
def test_resident_file_is_all_other_weights_byte_for_byte(
    dtype: str, packed: dict[str, Store], tiny_model: OPTForCausalLM
) -> None:
    tensors = load_file(packed[dtype].path / RESIDENT)
    streamed = ("fc1.weight", "fc2.weight", "lm_head.weight")
    expected = {name: t for name, t in tiny_model.state_dict().items() if not name.endswith(streamed)}
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == DTYPES[dtype]
        assert torch.equal(raw(tensors[name]), raw(tensor.to(DTYPES[dtype])))


@EVERY_DTYPE
def test_records_lie_on_the_grid_of_the_drive(dtype: str, packed: dict[str, Store]) -> None:
    store = packed[dtype]
    assert store.shape.record_bytes % store.shape.alignment == 0
    assert all(store.piece_offset("bundled", i, "bundle") % store.shape.alignment == 0 for i in range(store.layers))


@settings(deadline=None)
@given(
    neurons=st.integers(1, 40), d_model=st.integers(1, 40), dtype=st.sampled_from(list(DTYPES.values())),
    alignment=st.sampled_from([1, 4, 64, 512, 4096]), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_bundles_give_back_any_bits(neurons: int, d_model: int, dtype: torch.dtype, alignment: int, seed: int) -> None:
    shape = FFNShape(neurons, d_model, dtype.itemsize, alignment)
    bits = np.random.default_rng(seed).integers(0, 256, (2, neurons * shape.half_bytes), np.uint8)
    up = torch.from_numpy(bits[0]).view(dtype).view(neurons, d_model)
    down = torch.from_numpy(bits[1]).view(dtype).view(d_model, neurons)
    rows = pack_bundles(up, down, shape.record_bytes)
    assert rows.shape == (neurons, shape.record_bytes)
    assert shape.record_bytes % alignment == 0
    assert not rows[:, 2 * shape.half_bytes :].any()
    found_up, found_down = unpack_bundles(torch.from_numpy(rows).view(dtype), d_model)
    assert torch.equal(raw(found_up), raw(up))
    assert torch.equal(raw(found_down), raw(down.T))


def test_store_with_one_layout_refuses_stages_that_need_the_other(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pack(tiny_checkpoint, tmp_path / "store", layouts=("split",))
    assert not (tmp_path / "store" / BUNDLED).exists()
    flashlite.load(tmp_path / "store", stage="window", predictor="oracle", dram_budget="90%")
    with pytest.raises(StoreError, match="has no bundled layout"):
        flashlite.load(tmp_path / "store", stage="pool", predictor="oracle", dram_budget="90%")


def test_tokenizer_and_generation_settings_come_along(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(make_model(), tmp_path / "checkpoint")
    (checkpoint / "tokenizer.json").write_text('{"version": "1.0"}')
    (checkpoint / "generation_config.json").write_text('{"max_length": 77}')
    store = pack(checkpoint, tmp_path / "store")
    assert (store.path / "tokenizer.json").read_text() == '{"version": "1.0"}'
    model = flashlite.load(store, predictor="oracle", dram_budget="90%")
    assert model.generation_config.max_length == 77


# What packing leaves alone


def test_packing_to_a_folder_that_exists_changes_nothing(tiny_checkpoint: Path, copy: Path) -> None:
    before = contents(copy.parent)
    with pytest.raises(StoreError, match="exists already"):
        pack(tiny_checkpoint, copy, "bf16")
    assert contents(copy.parent) == before


def test_packing_replaces_a_store_if_told_to(tiny_checkpoint: Path, copy: Path) -> None:
    (copy / "left over").touch()
    pack(tiny_checkpoint, copy, "bf16", replace=True)
    assert Store(copy).dtype_name == "bf16"
    assert not (copy / "left over").exists()
    assert os.listdir(copy.parent) == ["copy"]


@pytest.mark.parametrize("arguments", [{"dtype": "int4"}, {"layouts": ("diagonal",)}, {"layouts": ()}], ids=str)
def test_unknown_dtype_or_layout_is_refused(arguments: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"choose from .*'bf16'.* and .*'split'") as error:
        pack(tiny_checkpoint, tmp_path / "store", **arguments)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_failing_pack_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = broken_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "stores").mkdir()
    with pytest.raises(CheckpointError):
        pack(checkpoint, tmp_path / "stores" / "store")
    assert os.listdir(tmp_path / "stores") == []


def test_failing_pack_keeps_the_store_it_should_have_replaced(copy: Path, tmp_path: Path) -> None:
    checkpoint, before = broken_checkpoint(tmp_path / "checkpoint"), contents(copy)
    with pytest.raises(CheckpointError):
        pack(checkpoint, copy, replace=True)
    assert contents(copy) == before
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "copy"]


def test_interrupted_pack_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def interrupt(step: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(tiny_checkpoint, tmp_path / "store", progress=interrupt)
    assert os.listdir(tmp_path) == []


def test_full_drive_is_one_line_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SafetensorsWriter, "write", full)
    with pytest.raises(StoreError, match=r"store cannot be written: No space left on device$"):
        pack(tiny_checkpoint, tmp_path / "store")
    assert os.listdir(tmp_path) == []


def test_packing_into_a_file_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        pack(tiny_checkpoint, tmp_path / "file" / "store")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which processes run in /proc")
def test_next_pack_removes_what_a_killed_one_left_but_not_what_another_writes(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    beyond_any_pid = 2**22 + 1
    (tmp_path / f".store.writing-{beyond_any_pid}").mkdir()
    (tmp_path / f".store.writing-{os.getppid()}").mkdir()
    pack(tiny_checkpoint, tmp_path / "store")
    assert sorted(os.listdir(tmp_path)) == [f".store.writing-{os.getppid()}", "store"]


# What opening refuses


def test_folder_without_manifest_is_no_store(tmp_path: Path) -> None:
    assert_refused(tmp_path, "is not a store: make one with `flashlite pack")
    assert_refused(tmp_path / "absent", "is not a store")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[1]\n\n{", b"[]", b'"text"', b"null"])
def test_manifest_that_is_not_json_is_refused(content: bytes, copy: Path) -> None:
    (copy / MANIFEST).write_bytes(content)
    assert_refused(copy, "manifest.json is damaged")


@pytest.mark.parametrize("content", [{"format": 1}, {"format": "2"}, {}], ids=str)
def test_manifest_of_another_format_is_refused(content: object, copy: Path) -> None:
    (copy / MANIFEST).write_text(json.dumps(content))
    assert_refused(copy, f"this flashlite reads {FORMAT}; pack the model again")


@pytest.mark.parametrize("newer", [NEWEST + 1, 10**6])
@pytest.mark.parametrize("keys", ["all", "none"])
def test_manifest_of_a_newer_format_asks_for_a_newer_flashlite(newer: int, keys: str, copy: Path) -> None:
    edit_manifest(copy, lambda m: m.update(format=newer) if keys == "all" else (m.clear(), m.update(format=newer)))
    assert_refused(copy, f"has the newer format {newer}, this one reads {NEWEST}: update flashlite")


def test_a_format_that_was_altered_is_no_newer_one(copy: Path) -> None:
    text = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(text.replace(f'"format": {FORMAT}', f'"format": {NEWEST + 1}'))
    assert_refused(copy, "manifest.json was altered; pack the model again")


def test_a_manifest_that_says_the_same_in_other_bytes_was_altered(copy: Path) -> None:
    """One bit is enough for that where a name holds more than ASCII."""
    edit_manifest(copy, lambda m: m.update(name="modèle"))
    text = (copy / MANIFEST).read_text()
    assert Store(copy).manifest["name"] == "modèle"
    (copy / MANIFEST).write_text(text.replace(r"mod\u00e8le", r"mod\u00E8le"))
    assert (copy / MANIFEST).read_text() != text
    assert_refused(copy, "manifest.json was altered; pack the model again")


@pytest.mark.parametrize("name", [RESIDENT, SPLIT, BUNDLED, CHECKSUMS])
@pytest.mark.parametrize("edit", [lambda sums: sums.popitem(), lambda sums: sums.update(x="")], ids=["fewer", "more"])
def test_manifest_that_names_other_tensors_is_refused(name: str, edit: Callable[[Any], object], copy: Path) -> None:
    edit_manifest(copy, lambda m: edit(m["files"][name]["sha256"]))
    assert_refused(copy, f"{name} holds other tensors than the manifest says")


@pytest.mark.parametrize("name", [RESIDENT, SPLIT, BUNDLED, CHECKSUMS])
@pytest.mark.parametrize("size", [0, 4, 100, 8192, -1])
def test_truncated_file_is_refused(name: str, size: int, copy: Path) -> None:
    os.truncate(copy / name, size if size >= 0 else (copy / name).stat().st_size + size)
    assert_refused(copy, f"{name} is damaged")


@pytest.mark.parametrize("name", [RESIDENT, SPLIT, BUNDLED, CHECKSUMS])
def test_file_with_more_than_its_tensors_is_refused(name: str, copy: Path) -> None:
    with (copy / name).open("ab") as file:
        file.write(b"more")
    assert_refused(copy, f"{name} has .* bytes, the manifest says")


@pytest.mark.parametrize("name", [RESIDENT, SPLIT, BUNDLED, CHECKSUMS])
def test_removed_file_is_refused(name: str, copy: Path) -> None:
    (copy / name).unlink()
    assert_refused(copy, f"{name} cannot be read: No such file")


@pytest.mark.parametrize("name", [RESIDENT, SPLIT, BUNDLED, CHECKSUMS])
def test_file_of_a_store_of_another_shape_is_refused(name: str, copy: Path, tmp_path: Path) -> None:
    other = pack(save_checkpoint(make_model(ffn_dim=128), tmp_path / "checkpoint"), tmp_path / "other")
    shutil.copyfile(other.path / name, copy / name)
    assert_refused(copy, f"{name} has .* bytes, the manifest says")


def test_file_and_manifest_entry_of_another_shape_are_refused(copy: Path, tmp_path: Path) -> None:
    other = pack(save_checkpoint(make_model(ffn_dim=128), tmp_path / "checkpoint"), tmp_path / "other")
    shutil.copyfile(other.path / BUNDLED, copy / BUNDLED)
    edit_manifest(copy, lambda m: m["files"].update({BUNDLED: other.manifest["files"][BUNDLED]}))
    assert_refused(copy, "layer 0 has another shape than the model's configuration says")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "sub/ffn-split.safetensors", "other.safetensors"])
def test_manifest_that_names_a_foreign_file_is_refused(name: str, copy: Path) -> None:
    edit_manifest(copy, lambda m: m["files"].update({name: m["files"][SPLIT]}))
    assert_refused(copy, "names a file that no store has")


@pytest.mark.parametrize("key", ["dtype", "layouts", "alignment", "config", "files", "copied"])
@pytest.mark.parametrize("value", [None, "", "x", 0, [1], {"x": 1}], ids=str)
def test_manifest_with_a_senseless_value_is_refused(key: str, value: object, copy: Path) -> None:
    edit_manifest(copy, lambda m: m.update({key: value}))
    assert_refused(copy, "manifest")


@pytest.mark.parametrize("key", ["name", "dtype", "layouts", "alignment", "config", "files", "copied"])
def test_manifest_that_lacks_a_value_is_refused(key: str, copy: Path) -> None:
    edit_manifest(copy, lambda m: m.pop(key))
    assert_refused(copy, "manifest.json is damaged")


@pytest.mark.parametrize(("key", "value"), [("hidden_size", "x"), ("hidden_size", None), ("num_hidden_layers", 4)])
def test_manifest_with_a_senseless_configuration_is_refused(key: str, value: object, copy: Path) -> None:
    edit_manifest(copy, lambda m: m["config"].update({key: value}))
    assert_refused(copy, "manifest")


def test_unknown_dtype_in_the_manifest_is_named(copy: Path) -> None:
    edit_manifest(copy, lambda m: m.update(dtype="int3"))
    assert_refused(copy, "int3")


def entry(dtype: str, shape: list[Any], begin: float, end: float) -> dict[str, Any]:
    """What a header says of a tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BYTES = entry("U8", [4], 0, 4)
BAD_HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "gap": ({"a": BYTES, "b": entry("U8", [4], 5, 9)}, "don't follow one on the other"),
    "gap before the first": ({"a": entry("U8", [4], 1, 5)}, "don't follow one on the other"),
    "overlap": ({"a": BYTES, "b": entry("U8", [4], 3, 7)}, "don't follow one on the other"),
    "twice": ({"a": BYTES, "b": BYTES}, "don't follow one on the other"),
    "behind the end": ({"a": entry("U8", [17], 0, 17)}, "ends behind the end of the file"),
    "before the data": ({"a": entry("U8", [4], -4, 0)}, "not a natural number"),
    "fraction": ({"a": entry("U8", [4], 0, 4.0)}, "not a natural number"),
    "fraction in a shape": ({"a": entry("U8", [4.0], 0, 4)}, "not a natural number"),
    "negative shape": ({"a": entry("U8", [-2, -2], 0, 4)}, "not a natural number"),
    "truth in a shape": ({"a": entry("U8", [4, True], 0, 4)}, "not a natural number"),
    "another size": ({"a": entry("U8", [3], 0, 4)}, "size differs from its shape"),
    "off the grid": ({"a": entry("U8", [1], 0, 1), "b": entry("F32", [1], 1, 5)}, "off the grid of its numbers"),
    "endless shape": ({"a": entry("U8", [2**63, 0, 2**63], 0, 4)}, "size differs from its shape"),
}


@pytest.mark.parametrize("kind", BAD_HEADERS)
def test_a_header_that_no_writer_writes_is_refused(kind: str, tmp_path: Path) -> None:
    header, message = BAD_HEADERS[kind]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(StoreError, match=f"file is damaged: .*{message}; pack the model again$"):
        read_extents(tmp_path / "file")


@pytest.mark.parametrize(("length", "size"), [(1, 100), (93, 100), (LARGEST + 1, 2 * LARGEST)])
def test_a_header_that_does_not_fit_is_not_read(length: int, size: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(length.to_bytes(8, "little") + b"{}")
    os.truncate(tmp_path / "file", size)
    with pytest.raises(StoreError, match="its header does not fit the file"):
        read_extents(tmp_path / "file")


# What verify finds


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        (SPLIT, "layers.1.up"), (SPLIT, "layers.2.down"), (BUNDLED, "layers.0.bundle"), (BUNDLED, "layers.2.bundle"),
        (RESIDENT, "model.decoder.embed_tokens.weight"), (RESIDENT, "model.decoder.layers.1.self_attn.q_proj.weight"),
        (RESIDENT, "model.decoder.layers.2.fc1.bias"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_verify_names_the_tensor_with_a_flipped_bit(file: str, tensor: str, share: float, copy: Path) -> None:
    Store(copy).verify()
    extent = read_extents(copy / file)[tensor]
    position = extent.begin + int(share * (extent.nbytes - 1))
    with (copy / file).open("r+b") as opened:
        opened.seek(position)
        byte = opened.read(1)[0]
        opened.seek(position)
        opened.write(bytes([byte ^ 1]))
    with pytest.raises(StoreError, match=f"{file}: {tensor} was altered") as error:
        Store(copy).verify()
    assert "\n" not in str(error.value)


# What load does with stores and checkpoints


@pytest.mark.parametrize("opened", [False, True])
def test_loading_a_store_as_another_dtype_is_refused(opened: bool, tiny_store: Store) -> None:
    with pytest.raises(StoreError, match="was packed as fp32, not bf16"):
        flashlite.load(tiny_store if opened else tiny_store.path, dtype="bf16", predictor="oracle", dram_budget="90%")


def test_folder_that_is_neither_store_nor_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is neither a store nor a checkpoint"):
        flashlite.load(tmp_path)


def test_checkpoint_is_packed_once_for_each_dtype(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path))
    first = flashlite.load(tiny_checkpoint, predictor="oracle", dram_budget="90%").flash.store
    written = first.path.stat().st_ino
    again = flashlite.load(tiny_checkpoint, predictor="oracle", dram_budget="90%").flash.store
    other = flashlite.load(tiny_checkpoint, predictor="oracle", dram_budget="95%", dtype="bf16").flash.store
    assert again.path == first.path
    assert again.path.stat().st_ino == written
    assert (other.path.parent, other.dtype_name) == (first.path.parent, "bf16")


def test_checkpoints_of_the_same_relative_name_are_not_confused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    for seed in (0, 1):
        model = make_model(seed)
        save_checkpoint(model, tmp_path / f"work{seed}" / "checkpoint")
        monkeypatch.chdir(tmp_path / f"work{seed}")
        loaded = flashlite.load("checkpoint", predictor="oracle", dram_budget="90%")
        assert torch.equal(loaded.model.decoder.embed_tokens.weight, model.model.decoder.embed_tokens.weight)
