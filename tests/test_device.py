"""Weights on a device: the whole way there, with the CPU taken for the device, so that it is tested without a GPU."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, smallest_budget
from faults import KINDS, Fault, Faulty, Plan
from test_faults import dense, expected, load_on, store, strike, write  # noqa: F401
from test_model_families import KINDS as FAMILIES
from test_model_families import ids_of, original, save
from torch import Tensor
from transformers import OPTForCausalLM, PreTrainedModel

import flashlite
from flashlite.bench.cap import INDEX_BYTES
from flashlite.engine.device import bus, place
from flashlite.engine.device.bus import Bus, CudaBus
from flashlite.engine.device.place import STAGED
from flashlite.engine.device.predictors import DeviceCopy, DeviceLowRank, OnHost
from flashlite.engine.predictor import LowRankPredictor
from flashlite.engine.stages import LADDER
from flashlite.errors import BudgetError, FlashliteError, ReadError
from flashlite.storage.pack import pack
from flashlite.storage.store import Store

AMPLE = "2MB"  # every neuron of the tiny model finds room
STAGES = pytest.mark.parametrize("stage", range(len(LADDER)))
CPU = torch.device("cpu")


def load(packed: Store, stage: int, device: str = STAGED, budget: int | str = AMPLE, **options: Any) -> PreTrainedModel:
    options = {"predictor": "oracle"} | options
    return flashlite.load(packed, stage=stage, dram_budget=budget, device=device, **options)


def random_ids(length: int, sequences: int = 1) -> Tensor:
    return torch.randint(3, TINY["vocab_size"], (sequences, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def decode(model: PreTrainedModel, ids: Tensor, prompt: int) -> Tensor:
    """Logits at all positions of ids, of which the first `prompt` enter at once and the others one by one."""
    out = model(ids[:, :prompt], use_cache=True)
    logits = [out.logits]
    for i in range(prompt, ids.shape[1]):
        out = model(ids[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    return torch.cat(logits, 1)


def assert_exact(model: PreTrainedModel, wanted: PreTrainedModel, sequences: int = 1) -> None:
    """The same logits as transformers' own model: of a prompt longer than the window, and of tokens after it."""
    ids = random_ids(14, sequences) % wanted.config.vocab_size
    torch.testing.assert_close(decode(model, ids, 9), wanted(ids).logits, atol=1e-4, rtol=0)


def tight(packed: Store, stage: int) -> int:
    """A budget in which some neurons are streamed for every token."""
    return smallest_budget(packed, stage, "oracle") + 5_000


class LateBus(Bus):
    """Copies that are made as late as a GPU may make them: when they are waited for. Until then their targets hold
    NaN, so whoever multiplies or reads again too early gives wrong tokens."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.late: list[Callable[[], object]] = []

    def send(self, target: Tensor, source: np.ndarray) -> None:
        target.fill_(0xFF)
        self.late.append(lambda: Bus.send(self, target, source))

    def put(self, target: Tensor, rows: np.ndarray, source: Tensor) -> None:
        target[torch.from_numpy(rows)] = 0xFF
        self.late.append(lambda: Bus.put(self, target, rows, source))

    def wait(self) -> None:
        for copy in self.late:
            copy()
        self.late.clear()


# The same tokens


@pytest.mark.parametrize("budget", [AMPLE, "tight"])
@STAGES
def test_every_stage_is_exact(tiny_store: Store, tiny_model: OPTForCausalLM, stage: int, budget: str) -> None:
    model = load(tiny_store, stage, budget=tight(tiny_store, stage) if budget == "tight" else budget)
    assert_exact(model, tiny_model)
    assert_exact(model, tiny_model, sequences=3)
    ids, settings = random_ids(12), {"do_sample": False, "max_new_tokens": 6, "num_beams": 2}
    assert model.generate(ids, **settings).tolist() == tiny_model.generate(ids, **settings).tolist()


@pytest.fixture(scope="module")
def family_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Store]:
    folder, made = tmp_path_factory.mktemp("families"), dict[str, Store]()

    def packed(kind: str) -> Store:
        if kind not in made:
            made[kind] = pack(save(kind, "safetensors", torch.float32, folder / kind), folder / f"{kind}.store")
        return made[kind]

    return packed


@pytest.mark.parametrize("kind", ["llama-biases", "falcon-7b", "prosparse"])
@STAGES
def test_other_families_are_exact(family_store: Callable[[str], Store], kind: str, stage: int) -> None:
    """Gated neurons with two biases, a layer that attends beside its FFN, and a threshold."""
    assert kind in FAMILIES
    model, wanted, ids = load(family_store(kind), stage), original(kind), ids_of(14)
    torch.testing.assert_close(decode(model, ids, 9), wanted(ids).logits, atol=1e-4, rtol=0)


@STAGES
def test_bf16_is_as_on_the_cpu(tiny_store: Store, tmp_path: Path, tiny_checkpoint: Path, stage: int) -> None:
    packed, ids = flashlite.pack(tiny_checkpoint, tmp_path / "bf16", dtype="bf16"), random_ids(14)
    found, wanted = (decode(load(packed, stage, device), ids, 9) for device in (STAGED, "cpu"))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("budget", [AMPLE, "tight"])
@STAGES
def test_nothing_is_multiplied_or_read_again_before_its_copy_has_ended(
    tiny_store: Store, tiny_model: OPTForCausalLM, stage: int, budget: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "bus_to", LateBus)
    model = load(tiny_store, stage, budget=tight(tiny_store, stage) if budget == "tight" else budget)
    assert_exact(model, tiny_model)
    assert_exact(model, tiny_model, sequences=2)


# The same counts


@pytest.mark.parametrize("budget", [AMPLE, "tight"])
@STAGES
def test_as_much_is_read_and_moved_as_on_the_cpu(tiny_store: Store, stage: int, budget: str) -> None:
    nbytes, ids = tight(tiny_store, stage) if budget == "tight" else budget, random_ids(20)
    engines = []
    for device in ("cpu", STAGED):
        model = load(tiny_store, stage, device, nbytes)
        decode(model, ids, 9)
        engines.append(model.flash)
    here, there = engines
    assert there.counters == here.counters
    assert there.counters.bytes > 0
    assert (there.rows_moved, there.rows_held, there.meter().wasted, there.meter().prefetched) == (
        here.rows_moved, here.rows_held, here.meter().wasted, here.meter().prefetched
    )  # fmt: skip
    costs = [[(cost.tokens, cost.records, cost.reads, cost.bytes) for cost in engine.calls] for engine in engines]
    assert costs[0] == costs[1]


def test_a_token_takes_one_copy_a_layer(tiny_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    class Counting(Bus):
        def send(self, target: Tensor, source: np.ndarray) -> None:
            sent.append(len(source))
            super().send(target, source)

    monkeypatch.setattr(place, "bus_to", Counting)
    model, ids = load(tiny_store, 5), random_ids(15)
    decode(model, ids[:, :9], 9)
    sent.clear()
    before = model.flash.counters.records
    for i in range(9, 15):
        model(ids[:, i : i + 1])
    scanned = 6 * tiny_store.layers * tiny_store.shape.neurons  # by the oracle, whose reads are not counted
    assert len(sent) <= 6 * tiny_store.layers
    assert 0 < sum(sent) == model.flash.counters.records - before < scanned


def test_a_call_is_charged_to_reading_copying_and_computing(tiny_store: Store) -> None:
    for stage in range(len(LADDER)):
        model = load(tiny_store, stage)
        decode(model, random_ids(12), 9)
        for cost in model.flash.calls:
            assert cost.total_ms == pytest.approx(cost.io_ms + cost.memory_ms + cost.compute_ms + cost.copy_ms)
        assert sum(cost.copy_ms for cost in model.flash.calls) > 0
    assert load(tiny_store, 5, "cpu").flash.clock.seconds[4] == 0


# What goes wrong between the drive and the device


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", [0, 1, 3, 5, 6])
def test_a_fault_while_reading_leaves_no_trace(store: Store, expected: Any, stage: int, kind: str) -> None:  # noqa: F811
    plan = Plan()
    model = load_on(store, stage, lambda inner: Faulty(inner, plan), "serial", device=STAGED)
    plan.arm(None)
    write(model, expected)
    batches = plan.batches
    for place_of_fault in (0.0, 0.4, 0.9):
        strike(model, plan, Fault(kind, 1 + int(place_of_fault * batches), 0.5), expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ReadError("the bus broke")])
@pytest.mark.parametrize("what", ["send", "put", "wait"])
@STAGES
def test_what_breaks_off_between_read_and_copy_leaves_no_trace(
    store: Store, expected: Any, stage: int, what: str, error: Any, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
) -> None:  # fmt: skip
    """The copy fails before it has begun, at three places of a text; what lay in the rows before is not believed."""
    left = -1

    class Breaking(LateBus):
        pass

    def broken(self: LateBus, *args: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise error
        getattr(LateBus, what)(self, *args)

    setattr(Breaking, what, broken)
    monkeypatch.setattr(place, "bus_to", Breaking)
    model = flashlite.load(store, stage=stage, predictor="oracle", dram_budget=AMPLE, device=STAGED)
    write(model, expected)
    left = before = 10**6
    write(model, expected)
    happened = before - left
    assert happened > 0 or (what == "put" and stage < 2)  # whole layers aren't put into rows
    for nth in sorted({1, (happened + 1) // 2, happened}) if happened else ():
        left = nth
        with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else ReadError):
            write(model, expected)
        write(model, expected)


# Budgets


def storages(model_before: set[int]) -> dict[int, int]:
    """Bytes of all tensors' memory that torch allocated since, by address."""
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, torch.nn.Parameter) and thing.device == CPU:
            memory = thing.untyped_storage()
            if memory.data_ptr() and memory.resizable() and memory.data_ptr() not in model_before:
                found[memory.data_ptr()] = memory.nbytes()
    return found


@pytest.mark.parametrize(
    ("stage", "predictor"),
    [(0, "oracle"), (1, "oracle"), (3, "copy"), (4, "oracle"), (5, "trained"), (5, "copy"), (6, "trained")],
)
def test_nothing_is_on_the_device_beyond_the_budget(tiny_store: Store, stage: int, predictor: str) -> None:
    """Memory of the host that torch sees as tensors can't be resized, so what can is the device's."""
    nbytes = smallest_on_device(tiny_store, stage, predictor) + 20_000
    before = set(storages(set()))
    model = load(tiny_store, stage, budget=nbytes, predictor=predictor)
    decode(model, random_ids(16), 9)
    on_device = sum(storages(before).values())
    work = INDEX_BYTES * tiny_store.layers * tiny_store.shape.neurons + 20_000
    budget = model.flash.budget
    assert budget.resident <= on_device <= nbytes + work
    assert budget.total == nbytes


def smallest_on_device(packed: Store, stage: int, predictor: str) -> int:
    with pytest.raises(BudgetError) as refused:
        load(packed, stage, budget=1, predictor=predictor)
    return refused.value.smallest


@STAGES
def test_the_host_part_is_what_buffers_take(tiny_store: Store, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    buffer = Bus.buffer
    monkeypatch.setattr(
        Bus, "buffer", lambda self, rows, row_bytes: taken.append(made := buffer(self, rows, row_bytes)) or made
    )
    model = load(tiny_store, stage)
    loading = model.flash.resident.host_bytes if LADDER[list(LADDER)[stage]].resident else 0
    assert sum(made.nbytes for made in taken) - loading == model.flash.budget.host
    assert load(tiny_store, stage, "cpu").flash.budget.host == 0


def test_predictors_take_two_bytes_a_weight_and_say_the_same(tiny_store: Store) -> None:
    x = torch.randn(40, tiny_store.shape.d_model, generator=torch.Generator().manual_seed(1))
    for name, kind in (("trained", DeviceLowRank), ("copy", DeviceCopy)):
        here, there = (load(tiny_store, 5, device, predictor=name).flash for device in ("cpu", STAGED))
        for ours, theirs in zip(here.ffns, there.ffns, strict=True):
            assert type(theirs.predictor) is kind
            assert isinstance(ours.predictor, kind.__mro__[1])
            agree = ours.predictor.mask(x) == theirs.predictor.mask(x)
            assert agree.float().mean() > 0.998  # bf16 rounds one step more
        assert there.budget.predictors == sum(ffn.predictor.nbytes for ffn in there.ffns)
        assert here.budget.predictors < there.budget.predictors < 2 * here.budget.predictors


def test_a_predictor_of_ones_own_is_asked_on_the_host(tiny_store: Store, tiny_model: OPTForCausalLM) -> None:
    class Everything:
        nbytes = 0

        def mask(self, x: Tensor) -> Tensor:
            assert x.device == CPU
            return torch.ones(len(x), tiny_store.shape.neurons, dtype=torch.bool)

    model = load(tiny_store, 5, predictor=[Everything()] * tiny_store.layers)
    assert all(isinstance(ffn.predictor, OnHost) for ffn in model.flash.ffns)
    assert_exact(model, tiny_model)


def test_the_longest_window_counts_predictors_as_they_are_on_the_device(tiny_store: Store) -> None:
    for percent in range(90, 152, 20):
        model = load(tiny_store, 5, budget=f"{percent}%", window="auto", predictor="trained")
        assert 1 <= model.flash.stage.window <= 8
        assert_same_as_planned(model)


def assert_same_as_planned(model: PreTrainedModel) -> None:
    engine = model.flash
    rows = sum(engine.budget.layer_rows) * engine.store.shape.record_bytes
    assert engine.budget.resident + engine.budget.predictors + engine.budget.buffers + rows <= engine.budget.total
    assert isinstance(engine.ffns[0].predictor, LowRankPredictor)


def test_verified_reads_are_compared_on_the_way(tiny_store: Store, tmp_path: Path, tiny_model: OPTForCausalLM) -> None:
    for stage in (0, 5):
        assert_exact(load(tiny_store, stage, verify_reads=True), tiny_model)


# What there is not


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_no_gpu_is_one_line_before_anything_is_packed(
    device: Any, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FlashliteError, match="needs an NVIDIA GPU and a torch with CUDA") as refused:
        flashlite.load(tiny_checkpoint, device=device)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "home").exists()


def test_a_gpu_too_many_is_one_line(tiny_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(FlashliteError, match="'cuda:1' is not here: there are 1, the first is cuda:0"):
        load(tiny_store, 5, "cuda:1")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "mps", "cpu:0", "", "CUDA", "meta"])
def test_other_devices_are_one_line(device: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(FlashliteError, match=r"is not known: write cpu, cuda, or cuda:1") as refused:
        flashlite.load(tiny_checkpoint, device=device)
    assert "\n" not in str(refused.value)


# CUDA's own calls, with a stand-in for each


class FakeStream:
    """A stream that computes at once, and notes what it was asked."""

    def __init__(self, *_: Any) -> None:
        self.asked: list[str] = []

    def record_event(self) -> str:
        self.asked.append("record_event")
        return "event"

    def wait_event(self, event: str) -> None:
        assert event == "event"
        self.asked.append("wait_event")

    def synchronize(self) -> None:
        self.asked.append("synchronize")


class FakeRuntime:
    """CUDA's runtime, as far as memory is pinned. refuses: whether it has no room for that.

    current: the device that it is asked about
    kept: whether it keeps the error of a call, as CUDA does until it is asked for it, which torch does at each kernel
    """

    def __init__(self, refuses: bool = False) -> None:
        self.pinned: dict[int, int] = {}
        self.current: torch.device | None = None
        self.kept, self._refuses = False, refuses

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device
        yield
        self.current = before

    def cudaHostRegister(self, where: int, nbytes: int, flags: int) -> int:
        assert (where % 4096, flags, self.current) == (0, 0, CPU)
        if not self._refuses:
            self.pinned[where] = nbytes
        self.kept = self._refuses
        return 2 * self._refuses

    def cudaHostUnregister(self, where: int) -> int:
        assert self.current == CPU
        del self.pinned[where]
        return 0

    def zeros(self, *size: int, device: torch.device) -> Tensor:
        if self.kept:
            self.kept = False
            raise RuntimeError("CUDA error: out of memory")
        return torch.empty(*size, device=device).zero_()


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRuntime]:
    """A torch.cuda that computes on the CPU."""
    runtime, current = FakeRuntime(), FakeStream()
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", runtime.device)
    monkeypatch.setattr(place, "bus_to", CudaBus)
    return runtime


@STAGES
def test_the_way_to_a_gpu(tiny_store: Store, tiny_model: OPTForCausalLM, stage: int, fake_cuda: FakeRuntime) -> None:
    """Every call that it makes of CUDA, and that all memory which it pinned is given back."""
    model = load(tiny_store, stage)
    assert_exact(model, tiny_model)
    assert sum(fake_cuda.pinned.values()) == model.flash.budget.host
    asked = model.flash._parts._bus._stream.asked
    assert asked.count("synchronize") >= tiny_store.layers
    assert all(later == "synchronize" for later in asked[-1:])
    assert "wait_event" in [first for first, _ in pairwise(asked)]
    del model
    gc.collect()
    assert fake_cuda.pinned == {}


def test_memory_that_cannot_be_pinned_is_one_line(
    fake_cuda: FakeRuntime, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And torch doesn't take the refusal for an error of the next kernel."""
    refusing = FakeRuntime(refuses=True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: refusing)
    monkeypatch.setattr(torch.cuda, "device", refusing.device)
    monkeypatch.setattr(torch, "zeros", refusing.zeros)
    buffer = CudaBus(CPU).buffer(2, 4096)
    assert not refusing.kept
    assert buffer.shape == (2, 4096)
    assert [record.message for record in caplog.records] == [
        "flashlite: 8192 bytes of the host's memory could not be pinned: copies are slower"
    ]
    assert bus.bus_to(CPU).__class__ is Bus
