"""Damaged stores: whatever was altered, a store is refused in one line or gives the dense model's tokens."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import add_predictor, make_model, save_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save, save_file
from transformers import OPTForCausalLM

import flashlite
from flashlite.bench import ladder as bench
from flashlite.bench.decoding import greedy
from flashlite.bench.dense import load_dense
from flashlite.bench.process.task import StageTask, Task
from flashlite.drive import flash
from flashlite.drive.backends import Backend, Batch
from flashlite.drive.direct import PAGE
from flashlite.drive.reads import Reads
from flashlite.engine.predictor_file import PredictorSet, signed
from flashlite.engine.stages import LADDER
from flashlite.errors import FlashliteError, PredictorError, ReadError, StoreError
from flashlite.storage.bundle import round_up
from flashlite.storage.safetensors_file import read_extents
from flashlite.storage.store import CHECKSUMS, MANIFEST, PREDICTOR, RESIDENT, Store, ffn_file, sealed
from flashlite.storage.verified import Checksums, VerifiedStore

SPLIT, BUNDLED = ffn_file("split"), ffn_file("bundled")
WEIGHTS = (RESIDENT, SPLIT, BUNDLED, CHECKSUMS)
FILES = (MANIFEST, *WEIGHTS, PREDICTOR)
PROMPT = [2, 17, 40, 99, 5, 33, 71]  # longer than the window, so that whole layers are read


def cases(number: int) -> Callable[[Any], Any]:
    """Let a test see this many cases, the same ones each time."""
    return settings(
        max_examples=number, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


class Bounded:
    """The usual backend, and sees to it that nothing outside of a file is read but the rest of its last page."""

    def __init__(self, usual: Backend) -> None:
        self._usual, self.name, self.depth = usual, usual.name, usual.depth

    def submit(self, fd: int, reads: Reads) -> Batch:
        assert (reads.offset >= 0).all()
        assert (reads.offset + reads.nbytes <= round_up(os.fstat(fd).st_size, PAGE)).all()
        return self._usual.submit(fd, reads)


@pytest.fixture(scope="module", autouse=True)
def bounded() -> Iterator[None]:
    """Every read of this module's tests is bounded."""
    with pytest.MonkeyPatch.context() as patch:
        backend = Bounded(flash.default_backend())
        patch.setattr(flash, "default_backend", lambda: backend)
        yield


class Victim:
    """A store to damage again and again. sound: each file's bytes as packed; tokens: what it says if it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sound = {name: (path / name).read_bytes() for name in FILES}
        self.manifest: dict[str, Any] = json.loads(self.sound[MANIFEST])
        del self.manifest["sha256"]
        self.tokens = greedy(load_dense(Store(path)), PROMPT, 3)[0]
        self._altered: set[str] = set()

    def heal(self) -> None:
        """As it was packed."""
        for name in self._altered:
            (self.path / name).write_bytes(self.sound[name])
        self._altered.clear()

    def alter(self, name: str, content: bytes) -> None:
        """Give a file another content."""
        self._altered.add(name)
        (self.path / name).write_bytes(content)

    def forge(self, name: str) -> None:
        """Have the manifest say of a file what is true of it now, as far as it can be told."""
        content = (self.path / name).read_bytes()
        begin = 8 + int.from_bytes(content[:8], "little")
        entry: dict[str, Any] = {"bytes": len(content), "header": _sha256(content[:begin]), "sha256": {}}
        with suppress(StoreError):
            for tensor, e in read_extents(self.path / name).items():
                entry["sha256"][tensor] = _sha256(content[e.begin : e.begin + e.nbytes])
        self.seal(self.manifest | {"files": self.manifest["files"] | {name: entry}})

    def seal(self, manifest: dict[str, Any]) -> None:
        """Give it this manifest, with the right checksum."""
        self.alter(MANIFEST, sealed(manifest).encode())

    def check(self) -> None:
        """All that `flashlite verify` checks."""
        store = Store(self.path)
        store.verify()
        PredictorSet.load(store)

    def speak(self, stage: int = 5, predictor: str = "oracle") -> list[int]:
        """Three tokens, every read verified."""
        model = flashlite.load(self.path, stage=stage, predictor=predictor, dram_budget="150%", verify_reads=True)
        return greedy(model, PROMPT, 3)[0]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def shared(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return Victim(Path(shutil.copytree(tiny_store.path, tmp_path_factory.mktemp("damage") / "store")))


@pytest.fixture
def victim(shared: Victim) -> Iterator[Victim]:
    """It heals after each test; tests of many cases heal it in between."""
    yield shared
    shared.heal()


def assert_refused(action: Callable[[], object], kind: type[Exception] = FlashliteError, match: str = "") -> None:
    with pytest.raises(kind, match=match or None) as error:
        action()
    assert "\n" not in str(error.value)


def assert_harmless(victim: Victim, stage: int, forged: bool = False, predictor: str = "oracle") -> None:
    """A damaged store must be refused, or speak as the sound one, or, if its manifest was forged, as the dense model of
    what the manifest says."""
    outcome(victim.check)
    if (tokens := outcome(lambda: victim.speak(stage, predictor))) is None:
        return
    if not forged or tokens == victim.tokens:
        assert tokens == victim.tokens
    elif predictor == "oracle":
        assert tokens == greedy(load_dense(Store(victim.path)), PROMPT, 3)[0]


def outcome(action: Callable[[], Any]) -> Any:
    """What an action gives, or None if it is refused in one line."""
    refused = ""
    try:
        return action()
    except FlashliteError as error:
        refused = str(error)
    assert refused
    assert "\n" not in refused
    return None


# Any damage

NASTY: list[Any] = [0, -1, 1, 2**31, 2**63, 1e308, 0.5, "", "relu", "x" * 300, True, None, [], {}, [[]], {"a": []}]
JSON = st.sampled_from(NASTY) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
STAGES = st.sampled_from([0, 3, 5])


def edit(data: st.DataObject, tree: Any) -> Any:
    """A copy of a JSON value in which something somewhere is another, is missing, or has come in addition."""
    if isinstance(tree, dict) and tree and data.draw(st.integers(0, 9)) > 0:
        key = data.draw(st.sampled_from(sorted(tree)))
        action = data.draw(st.sampled_from(["inside", "inside", "delete", "add", "rename"]))
        if action == "inside":
            return tree | {key: edit(data, tree[key])}
        if action == "add":
            return tree | {data.draw(st.text(max_size=5)): data.draw(JSON)}
        rest = {name: value for name, value in tree.items() if name != key}
        return rest | ({data.draw(st.text(max_size=5)): tree[key]} if action == "rename" else {})
    if isinstance(tree, list) and tree and data.draw(st.booleans()):
        i = data.draw(st.integers(0, len(tree) - 1))
        return [*tree[:i], edit(data, tree[i]), *tree[i + 1 :]]
    if isinstance(tree, int) and data.draw(st.booleans()):
        return tree + data.draw(st.sampled_from([-64, -1, 1, 2, 64, 256]))
    return data.draw(JSON)


def scribble(data: st.DataObject, content: bytes, begin: int = 0, end: int | None = None) -> bytes:
    """Content with some bytes between begin and end overwritten, put in or taken out, or cut off there."""
    at = data.draw(st.integers(begin, (end or len(content)) - 1))
    new = data.draw(st.binary(min_size=1, max_size=8))
    action = data.draw(st.sampled_from(["overwrite", "overwrite", "overwrite", "insert", "delete", "cut"]))
    if action == "cut":
        return content[:at]
    return content[:at] + (b"" if action == "delete" else new) + content[at + (action != "insert") * len(new) :]


@cases(120)
@given(data=st.data(), seal=st.booleans(), stage=STAGES)
def test_manifest_with_any_values(data: st.DataObject, seal: bool, stage: int, shared: Victim) -> None:
    manifest = edit(data, shared.manifest)
    if seal and isinstance(manifest, dict):
        shared.seal(manifest)
    else:
        shared.alter(MANIFEST, json.dumps(manifest, indent=1).encode())
    assert_harmless(shared, stage, forged=seal)
    shared.heal()


@cases(40)
@given(data=st.data())
def test_manifest_with_any_bytes(data: st.DataObject, shared: Victim) -> None:
    shared.alter(MANIFEST, scribble(data, shared.sound[MANIFEST]))
    if (shared.path / MANIFEST).read_bytes() != shared.sound[MANIFEST]:
        assert_refused(lambda: Store(shared.path))
    shared.heal()


@cases(120)
@given(data=st.data(), name=st.sampled_from(WEIGHTS), forged=st.booleans(), stage=STAGES)
def test_header_with_any_values(data: st.DataObject, name: str, forged: bool, stage: int, shared: Victim) -> None:
    content = shared.sound[name]
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(edit(data, json.loads(content[8:begin]))).encode()
    header += b" " * (-(len(header) + 8) % data.draw(st.sampled_from([1, 4, 4096])))
    shared.alter(name, len(header).to_bytes(8, "little") + header + content[begin:])
    if forged:
        shared.forge(name)
    assert_harmless(shared, stage, forged)
    shared.heal()


@cases(60)
@given(data=st.data(), name=st.sampled_from(WEIGHTS), forged=st.booleans(), stage=STAGES)
def test_header_with_any_bytes(data: st.DataObject, name: str, forged: bool, stage: int, shared: Victim) -> None:
    content = shared.sound[name]
    end = data.draw(st.sampled_from([8, content.index(b"  "), 8 + int.from_bytes(content[:8], "little")]))
    shared.alter(name, scribble(data, content, 0, end))
    if forged:
        shared.forge(name)
    elif (shared.path / name).read_bytes() != content:
        assert_refused(shared.check)
    assert_harmless(shared, stage, forged)
    shared.heal()


@cases(60)
@given(data=st.data(), name=st.sampled_from(WEIGHTS), forged=st.booleans(), stage=STAGES)
def test_weights_with_any_bytes(data: st.DataObject, name: str, forged: bool, stage: int, shared: Victim) -> None:
    content = shared.sound[name]
    damaged = scribble(data, content, 8 + int.from_bytes(content[:8], "little"))
    shared.alter(name, damaged)
    if forged:
        shared.forge(name)
    elif damaged != content:
        assert_refused(shared.check)
    assert_harmless(shared, stage, forged)
    shared.heal()


@cases(40)
@given(data=st.data())
def test_predictor_with_any_bytes(data: st.DataObject, shared: Victim) -> None:
    content = shared.sound[PREDICTOR]
    end = data.draw(st.sampled_from([8, 8 + int.from_bytes(content[:8], "little"), len(content)]))
    damaged = scribble(data, content, 0, end)
    shared.alter(PREDICTOR, damaged)
    if damaged != content:
        assert_refused(shared.check, PredictorError)
    assert_harmless(shared, 5, predictor="trained")
    shared.heal()


@cases(40)
@given(data=st.data())
def test_predictor_with_any_values(data: st.DataObject, shared: Victim) -> None:
    """Tensors and reports that were changed together with their checksum."""
    tensors, reports = load(shared.sound[PREDICTOR]), _reports(shared.sound[PREDICTOR])
    if data.draw(st.booleans()):
        reports = edit(data, reports)
    name = data.draw(st.sampled_from(sorted(tensors)))
    action = data.draw(st.sampled_from(["nothing", "delete", "dtype", "cut", "flat", "scalar", "random"]))
    tensors[name] = {
        "dtype": lambda t: t.float(), "cut": lambda t: t[: data.draw(st.integers(0, len(t)))].contiguous(),
        "flat": lambda t: t.reshape(-1), "scalar": lambda t: t.reshape(-1)[0].clone(),
        "random": lambda t: torch.randint(0, 256, (t.nbytes,), dtype=torch.uint8).view(t.dtype).view(t.shape),
    }.get(action, lambda t: t)(tensors[name])  # fmt: skip
    if action == "delete":
        del tensors[name]
    text = json.dumps(reports)
    shared.alter(PREDICTOR, b"")
    save_file(tensors, shared.path / PREDICTOR, signed(tensors, text, shared.manifest["up_projections"]))
    assert_harmless(shared, 5, forged=True, predictor="trained")
    shared.heal()


def _reports(content: bytes) -> Any:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["reports"])


# Every place

CUTS, FLIPS = 20, 50


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_refused(name: str, victim: Victim) -> None:
    content = victim.sound[name]
    for size in np.linspace(0, len(content) - 1, CUTS, dtype=int):
        victim.alter(name, content[:size])
        assert_refused(victim.check)


@pytest.mark.parametrize("name", FILES)
def test_a_bit_flipped_anywhere_is_found(name: str, victim: Victim) -> None:
    rng, content = np.random.default_rng(0), victim.sound[name]
    for position in (*places(content, name), *rng.integers(0, len(content), FLIPS)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        victim.alter(name, bytes(damaged))
        assert_refused(victim.check)


def places(content: bytes, name: str) -> list[int]:
    """Every byte of a header's length, and of each other kind of bytes the first, one in the middle, and the last:
    header, its padding, and each tensor. Nothing of a manifest, which has but one kind."""
    if name == MANIFEST:
        return []
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    text = len(content[:begin].rstrip())
    spans = [(8, text), *([(text, begin)] if text < begin else [])]
    spans += [(begin + a, begin + b) for a, b in (t["data_offsets"] for n, t in header.items() if n[:2] != "__")]
    return [*range(8), *(place for a, b in spans for place in (a, (a + b) // 2, b - 1))]


@pytest.mark.parametrize("name", [SPLIT, BUNDLED])
@pytest.mark.parametrize("forged", [False, True])
def test_layers_that_changed_places_are_found(name: str, forged: bool, victim: Victim) -> None:
    content, extents = bytearray(victim.sound[name]), read_extents(victim.path / name)
    piece = "up" if name == SPLIT else "bundle"
    one, other = (slice(e.begin, e.begin + e.nbytes) for e in (extents[f"layers.{i}.{piece}"] for i in (0, 2)))
    content[one], content[other] = content[other], content[one]
    victim.alter(name, bytes(content))
    assert_refused(victim.check, StoreError, rf"{name}: layers\.0\.{piece} was altered")
    if forged:
        victim.forge(name)
        victim.check()
    stage = 3 if name == SPLIT else 5
    assert_refused(lambda: victim.speak(stage), ReadError, rf"{name}: layer 0, {piece} of neuron \d+ was altered")


def test_names_that_changed_places_in_a_header_are_noticed_at_opening(victim: Victim) -> None:
    content = victim.sound[SPLIT]
    for old, new in ((b"s.0.up", b"s.?.up"), (b"s.1.up", b"s.0.up"), (b"s.?.up", b"s.1.up")):
        content = content.replace(old, new)
    assert len(content) == len(victim.sound[SPLIT])
    victim.alter(SPLIT, content)
    assert_refused(lambda: Store(victim.path), StoreError, f"{SPLIT}: its header was altered")


OTHER_KINDS: dict[str, tuple[str, str, Callable[[torch.Tensor], torch.Tensor], str]] = {
    "turned weights": (RESIDENT, "model.decoder.embed_tokens.weight", lambda t: t.T, "holds other weights"),
    "half weights": (RESIDENT, "model.decoder.layers.1.fc1.bias", lambda t: t.half(), "is not fp32 throughout"),
    "wide records": (SPLIT, "layers.1.up", lambda t: t.half(), "layer 1 has another shape"),
    "short records": (BUNDLED, "layers.2.bundle", lambda t: t[:, :-1], "layer 2 has another shape"),
    "few checksums": (CHECKSUMS, "bundled.layers.2.bundle", lambda t: t[:-1], "does not have one checksum a record"),
    "odd checksums": (
        CHECKSUMS,
        "split.layers.0.up",
        lambda t: t.view(torch.float32),
        "does not have one checksum a record",
    ),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_tensors_of_another_kind_are_refused_though_the_manifest_agrees(kind: str, victim: Victim) -> None:
    name, tensor, change, message = OTHER_KINDS[kind]
    tensors = load(victim.sound[name])
    victim.alter(name, save(tensors | {tensor: change(tensors[tensor]).contiguous()}))
    victim.forge(name)
    assert_refused(lambda: Store(victim.path), StoreError, message)


@pytest.mark.parametrize("name", [SPLIT, BUNDLED])
def test_records_that_changed_places_are_found(name: str, victim: Victim) -> None:
    content, extents = bytearray(victim.sound[name]), read_extents(victim.path / name)
    for extent in extents.values():
        records = np.frombuffer(content, np.uint8)[extent.begin : extent.begin + extent.nbytes].reshape(extent.shape)
        records[[7, 200]] = records[[200, 7]]
    victim.alter(name, bytes(content))
    victim.forge(name)
    assert_refused(lambda: victim.speak(0 if name == SPLIT else 5), ReadError, "layer 0, .* of neuron 7 was altered")


def test_manifest_of_another_model_of_the_same_shape_is_refused(victim: Victim, tmp_path: Path) -> None:
    other = flashlite.pack(save_checkpoint(make_model(1), tmp_path / "checkpoint"), tmp_path / "other")
    victim.alter(MANIFEST, (other.path / MANIFEST).read_bytes())
    assert_refused(victim.check, StoreError, f"{RESIDENT}: .* was altered")
    assert_refused(victim.speak, StoreError, f"{CHECKSUMS}: .* was altered")


def test_oracle_needs_no_predictor(victim: Victim) -> None:
    victim.alter(PREDICTOR, b"")
    assert victim.speak() == victim.tokens


def test_predictor_of_another_shape_is_refused(victim: Victim, tmp_path: Path) -> None:
    wide = make_model(ffn_dim=128)
    other = flashlite.pack(save_checkpoint(wide, tmp_path / "checkpoint"), tmp_path / "other")
    add_predictor(other, wide)
    victim.alter(PREDICTOR, (other.path / PREDICTOR).read_bytes())
    assert_refused(victim.check, PredictorError, "another model")


def test_predictor_of_other_weights_is_refused(victim: Victim, tmp_path: Path) -> None:
    model = make_model(1)
    other = flashlite.pack(save_checkpoint(model, tmp_path / "checkpoint"), tmp_path / "other")
    add_predictor(other, model)
    victim.alter(PREDICTOR, (other.path / PREDICTOR).read_bytes())
    for act in (victim.check, lambda: victim.speak(predictor="trained")):
        assert_refused(
            act, PredictorError, "was trained for other weights than this store's; train the predictor again"
        )


def of_format_2(victim: Victim, name: str) -> None:
    """Make the manifest or the predictor what earlier versions wrote."""
    if name == MANIFEST:
        new = {"up_projections", "own_dtype"}
        victim.seal({key: value for key, value in victim.manifest.items() if key not in new} | {"format": 2})
    else:
        content = victim.sound[PREDICTOR]
        victim.alter(PREDICTOR, save(load(content), signed(load(content), json.dumps(_reports(content)), None)))


@pytest.mark.parametrize("old", [(MANIFEST, PREDICTOR), (MANIFEST,), (PREDICTOR,)], ids="-".join)
def test_stores_and_predictors_of_format_2_are_read_with_a_line(
    old: tuple[str, ...], victim: Victim, caplog: pytest.LogCaptureFixture
) -> None:
    for name in old:
        of_format_2(victim, name)
    assert victim.speak(predictor="trained") == victim.tokens
    line = "it can't be told whether it was trained for these weights; train the predictor again"
    assert [message.partition(f"{PREDICTOR}: ")[2] for message in caplog.messages] == [line]


def test_a_new_store_that_lacks_its_digest_is_damaged(victim: Victim) -> None:
    for up_projections in (None, 5, ...):
        manifest = victim.manifest | {"up_projections": up_projections}
        victim.seal({key: value for key, value in manifest.items() if value is not ...})
        assert_refused(lambda: Store(victim.path), StoreError, "its up_projections are not a digest")


def test_an_altered_report_of_a_predictor_is_found(victim: Victim) -> None:
    assert b"0.99" in victim.sound[PREDICTOR]
    victim.alter(PREDICTOR, victim.sound[PREDICTOR].replace(b"0.99", b"0.98", 1))
    assert_refused(victim.check, PredictorError, "was altered; train the predictor again")


@pytest.mark.parametrize("copied", ["tokenizer.json", "generation_config.json"])
def test_verify_finds_an_altered_copy(copied: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(make_model(), tmp_path / "checkpoint")
    (checkpoint / copied).write_text("{}")
    store = flashlite.pack(checkpoint, tmp_path / "store")
    store.verify()
    (store.path / copied).write_text("{ }")
    assert_refused(store.verify, StoreError, f"{copied} was altered")
    (store.path / copied).unlink()
    assert_refused(store.verify, StoreError, f"{copied} cannot be read")


# Verified reads


@pytest.mark.parametrize("stage", range(len(LADDER)))
def test_verified_reads_change_neither_tokens_nor_counts(stage: int, tiny_store: Store) -> None:
    found = []
    for verify_reads in (False, True):
        model = flashlite.load(tiny_store, stage=stage, dram_budget="150%", verify_reads=verify_reads)
        tokens = greedy(model, PROMPT, 6)[0]
        found.append((tokens, [(call.records, call.reads, call.bytes) for call in model.flash.calls]))
    assert found[0] == found[1]


@pytest.mark.parametrize("predictor", ["oracle", "trained"])
@pytest.mark.parametrize("stage", range(len(LADDER)))
def test_each_stage_notices_what_it_reads(stage: int, predictor: str, victim: Victim) -> None:
    """Layer 1, one bit in each of its records."""
    for name in (SPLIT, BUNDLED):
        content = bytearray(victim.sound[name])
        for tensor, extent in read_extents(victim.path / name).items():
            if tensor.startswith("layers.1."):
                at = np.arange(extent.shape[0]) * extent.shape[1] + extent.begin + 3
                np.frombuffer(content, np.uint8)[at] ^= 1
        victim.alter(name, bytes(content))
    assert_refused(lambda: victim.speak(stage, predictor), ReadError, "layer 1, .* of neuron .* was altered")


@pytest.mark.parametrize("stage", range(len(LADDER)))
def test_each_stage_notices_altered_resident_weights(stage: int, victim: Victim) -> None:
    content = bytearray(victim.sound[RESIDENT])
    content[read_extents(victim.path / RESIDENT)["model.decoder.layers.2.fc1.bias"].begin] ^= 1
    victim.alter(RESIDENT, bytes(content))
    assert_refused(lambda: victim.speak(stage), ReadError, r"layers\.2\.fc1\.bias was altered")


def test_resident_weights_that_are_read_again_are_checked_again(victim: Victim) -> None:
    model = flashlite.load(victim.path, stage=0, dram_budget="150%", verify_reads=True)
    ids = torch.tensor([PROMPT])
    model(ids)
    content = bytearray(victim.sound[RESIDENT])
    content[-1] ^= 1
    victim.alter(RESIDENT, bytes(content))
    assert_refused(lambda: model(ids), ReadError, "was altered")


def test_checksums_take_four_bytes_a_record(tiny_store: Store) -> None:
    store = VerifiedStore(tiny_store.path)
    assert Checksums(store, "split")._sums.nbytes == 4 * 2 * store.layers * store.shape.neurons
    assert Checksums(store, "bundled")._sums.nbytes == 4 * store.layers * store.shape.neurons


@pytest.mark.parametrize(("shift", "size"), [(1, 512), (0, 511), (-512, 512), (3 * 256 * 512, 512), (0, 1024)])
def test_a_read_that_is_no_record_cannot_be_verified(shift: int, size: int, tiny_store: Store) -> None:
    file = VerifiedStore(tiny_store.path).open_ffn("bundled")
    offset = np.array([tiny_store.piece_offset("bundled", 0, "bundle") + shift])
    buffer = np.zeros((1, 4096), np.uint8)
    assert_refused(lambda: file.read(offset, size, buffer, np.array([0])), ReadError, "is not a record")


def test_a_failed_ticket_fails_each_time(victim: Victim) -> None:
    content = bytearray(victim.sound[BUNDLED])
    content[-1] ^= 1
    victim.alter(BUNDLED, bytes(content))
    store = VerifiedStore(victim.path)
    buffer, neuron = np.zeros((1, store.shape.record_bytes), np.uint8), store.shape.neurons - 1
    offset = store.piece_offset("bundled", 2, "bundle") + neuron * store.shape.record_bytes
    ticket = store.open_ffn("bundled").submit(np.array([offset]), buffer.shape[1], buffer, np.array([0]))
    for _ in range(2):
        assert_refused(ticket.wait, ReadError, f"layer 2, bundle of neuron {neuron} was altered")


def test_a_ticket_that_was_waited_for_looks_at_its_rows_no_more(tiny_store: Store) -> None:
    """By then they may hold what another one read."""
    store = VerifiedStore(tiny_store.path)
    buffer, offset = np.zeros((1, store.shape.record_bytes), np.uint8), store.piece_offset("bundled", 0, "bundle")
    ticket = store.open_ffn("bundled").submit(np.array([offset]), buffer.shape[1], buffer, np.array([0]))
    ticket.wait()
    buffer[:] = 0
    ticket.wait()


def test_bench_hands_the_wish_on(tiny_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = []

    def stop(task: Task[Any], *_: object) -> None:
        if isinstance(task, StageTask):
            tasks.append(task)
            raise FlashliteError("enough")

    monkeypatch.setattr(bench, "run_worker", stop)
    monkeypatch.setattr(bench, "prompt_ids", lambda *_: PROMPT)
    monkeypatch.setattr(bench, "measure_ceiling", lambda *_: (None, {}))
    with pytest.raises(FlashliteError, match="enough"):
        bench.bench(tiny_store, stages=[5], tokens=8, prompt_tokens=7, budget="2MB", verify_reads=True)
    assert [task.verify_reads for task in tasks] == [True]


def test_what_the_sound_store_says(victim: Victim, tiny_model: OPTForCausalLM) -> None:
    victim.check()
    assert victim.tokens == greedy(tiny_model, PROMPT, 3)[0]
    assert all(victim.speak(stage) == victim.tokens for stage in range(len(LADDER)))
