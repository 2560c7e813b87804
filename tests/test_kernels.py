"""Compiled products over picked rows: torch's results, whatever the threads do."""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numba import cfunc, types
from numba.core.errors import TypingError
from torch import Tensor, nn

import flashlite
from flashlite.engine.kernels import native, team
from flashlite.engine.kernels import threads as lent
from flashlite.engine.kernels.linear import RowsLinear, use_rows
from flashlite.engine.kernels.rows import FEW, products, weighted_sum
from flashlite.storage.store import Store

KINDS = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
WIDTHS = (1, 7, 64, 1003)


def weights(rows: int, columns: int, kind: torch.dtype, seed: int = 0) -> Tensor:
    """Random weights: [rows, columns]."""
    generator = torch.Generator().manual_seed(seed)
    if kind == torch.int8:
        return torch.randint(-128, 128, (rows, columns), generator=generator, dtype=kind)
    return torch.randn(rows, columns, generator=generator).to(kind)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch has, and puts it right afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("tokens", [1, 3, 9])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_picked_rows_give_what_torch_gives(kind: torch.dtype, width: int, tokens: int) -> None:
    wide = weights(50, width + 5, kind)
    matrix = wide[:, 2 : 2 + width]  # some columns of a wider matrix
    for rows in (np.array([7, 3, 3, 49, 0, 12, 11]), np.arange(50), np.array([4]), np.zeros(0, np.int64)):
        x, h = torch.randn(tokens, width), torch.randn(tokens, len(rows))
        exact = matrix[rows].double()
        scale = float(exact.abs().max()) if len(rows) else 1.0
        found = products(x, matrix, rows)
        torch.testing.assert_close(found.double(), x.double() @ exact.T, atol=1e-5 * scale * width**0.5, rtol=1e-5)
        found = weighted_sum(h, matrix, rows, width)
        torch.testing.assert_close(found.double(), h.double() @ exact, atol=1e-5 * scale * 8, rtol=1e-5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_precision_number_is_read_as_torch_reads_it(kind: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(kind)
    finite = every[every.isfinite()][:, None]
    found = products(torch.ones(1, 1), finite, np.arange(len(finite)))
    assert torch.equal(found[0], finite[:, 0].float())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_same_bits_with_any_number_of_threads(count: int, threads: Callable[[int], None]) -> None:
    matrix, rows = weights(1800, 2048, torch.bfloat16), np.arange(0, 1800, 2)
    x, h = torch.randn(1, 2048), torch.randn(1, 900)
    threads(1)
    alone = products(x, matrix, rows), weighted_sum(h, matrix, rows, 2048)
    threads(count)
    for _ in range(20):
        assert torch.equal(products(x, matrix, rows), alone[0])
        assert torch.equal(weighted_sum(h, matrix, rows, 2048), alone[1])


def test_nobody_waits_for_a_thread_that_gets_no_core(
    monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]
) -> None:
    threads(4)
    monkeypatch.setattr(team._Helper, "wake", lambda helper, job: None)
    matrix, x = weights(900, 2048, torch.float32), torch.randn(1, 2048)
    found = products(x, matrix, np.arange(900))
    torch.testing.assert_close(found, x @ matrix.T, atol=1e-3, rtol=1e-4)


def test_a_thread_that_comes_late_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]
) -> None:
    threads(2)
    late: list[team._Job] = []
    monkeypatch.setattr(team._Helper, "wake", lambda helper, job: late.append(job))
    matrix, x = weights(900, 2048, torch.float32), torch.randn(1, 2048)
    found = products(x, matrix, np.arange(900))
    before = found.clone()
    for job in late:
        job.body(job.address, job.matrix)
    assert late
    assert torch.equal(found, before)


def test_code_that_can_be_kept_nowhere_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(signature: Any, cache: bool = False) -> Any:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return cfunc(signature)

    monkeypatch.setattr(native, "cfunc", refuse)
    code = native.native(types.int64(types.int64), lambda number: number + 1)
    assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(code.address)(4) == 5
    assert asked == [True, False]


@pytest.mark.parametrize("why", [OSError(28, "No space left on device"), EOFError("Ran out of input")], ids=str)
def test_code_that_can_not_be_kept_or_read_back_is_compiled_and_one_line_says_so(
    why: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a power cut, or on a full drive."""

    def refuse(signature: Any, cache: bool = False) -> Any:
        if cache:
            raise why
        return cfunc(signature)

    native._say_once.cache_clear()
    monkeypatch.setattr(native, "cfunc", refuse)
    for _ in range(2):
        code = native.native(types.int64(types.int64), lambda number: number + 1)
        assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(code.address)(4) == 5
    (line,) = caplog.messages
    assert str(why) in line
    assert "delete *.nbi and *.nbc in" in line


def test_a_function_that_does_not_compile_is_another_error(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TypingError):
        native.native(types.int64(types.int64), lambda number: number.nothing)
    assert not caplog.messages


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_torchs_default_dtype_and_that_of_x_change_nothing(kind: torch.dtype, default: torch.dtype) -> None:
    """Compiled code writes float32, wherever the memory for it ends."""
    matrix, x, rows = weights(300, 64, kind), torch.randn(2, 64).to(default), np.arange(300, dtype=np.int32)
    h = torch.randn(2, 300).to(default)
    try:
        torch.set_default_dtype(default)
        found, summed = products(x, matrix, rows), weighted_sum(h, matrix, rows, 64)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == summed.dtype == torch.float32
    torch.testing.assert_close(found.double(), x.double() @ matrix.double().T, atol=0.02, rtol=1e-5)
    torch.testing.assert_close(summed.double(), h.double() @ matrix.double(), atol=0.02, rtol=1e-5)


def test_a_thread_that_another_caller_has_just_woken_is_left_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two callers may find it asleep at once, and the second one comes too late."""

    class Open:
        def locked(self) -> bool:
            return True

        def release(self) -> None:
            raise RuntimeError("release unlocked lock")

    helper = object.__new__(team._Helper)
    helper._asleep = Open()
    helper.wake(job := team._Job(lambda address, matrix: None, 0, 0, None))
    assert helper._job is job


def test_several_callers_share_the_threads(threads: Callable[[int], None]) -> None:
    threads(3)
    matrix, rows = weights(900, 4096, torch.int8), np.arange(900)
    inputs = [torch.randn(1, 4096) for _ in range(6)]
    expected = [products(x, matrix, rows) for x in inputs]
    wrong = []

    def call(i: int) -> None:
        wrong.extend(i for _ in range(30) if not torch.equal(products(inputs[i], matrix, rows), expected[i]))

    callers = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_a_sleeping_thread_holds_no_weights(threads: Callable[[int], None]) -> None:
    threads(4)
    matrix = weights(900, 2048, torch.float32)
    products(torch.randn(1, 2048), matrix, np.arange(900))
    gone = weakref.ref(matrix)
    del matrix
    for _ in range(1000):  # until the threads have looked at what they were woken for
        if gone() is None:
            break
        time.sleep(0.01)
    assert gone() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_starts_threads_of_its_own(threads: Callable[[int], None]) -> None:
    threads(2)
    matrix, x, rows = weights(900, 2048, torch.float32), torch.randn(1, 2048), np.arange(900)
    expected = products(x, matrix, rows)
    if not (child := os.fork()):
        os._exit(0 if torch.equal(products(x, matrix, rows), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_call_has_torchs_threads_and_gives_them_back(threads: Callable[[int], None]) -> None:
    threads(3)
    call, other = object(), object()
    lent.borrow(call)
    assert (torch.get_num_threads(), lent.count()) == (1, 3)
    lent.borrow(other)  # a call of another model, beside this one
    lent.give_back(other)
    assert (torch.get_num_threads(), lent.count()) == (1, 3)
    lent.give_back(call)
    assert (torch.get_num_threads(), lent.count()) == (3, 3)
    threads(2)
    lent.give_back(call)  # once more
    assert (torch.get_num_threads(), lent.count()) == (2, 2)


def threads_of_a_new_one() -> int:
    """How many threads torch has in a thread that begins now."""
    found: list[int] = []
    beginner = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    beginner.start()
    beginner.join()
    return found[0]


def test_a_thread_that_begins_beside_a_call_has_all_of_torchs(threads: Callable[[int], None]) -> None:
    """Torch asks once for each thread how many it may have, and that thread keeps the answer."""
    threads(3)
    lent.borrow(call := object())
    try:
        for _ in range(1000):  # until the thread that sees to it has run
            if threads_of_a_new_one() == 3:
                break
            time.sleep(0.01)
        assert threads_of_a_new_one() == 3
        assert torch.get_num_threads() == 1
    finally:
        lent.give_back(call)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("moment", [1, 2])
def test_an_interrupt_at_any_moment_leaves_torch_its_threads(
    moment: int, before: bool, threads: Callable[[int], None], tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a call takes them (1), and while it gives them back (2)."""
    model = flashlite.load(tiny_store, predictor="oracle", dram_budget=10**8)
    threads(3)
    set_number, main, calls = torch.set_num_threads, threading.get_ident(), []

    def interrupted(number: int) -> None:
        if threading.get_ident() == main:
            calls.append(number)
            if len(calls) == moment and before:
                raise KeyboardInterrupt
        set_number(number)
        if threading.get_ident() == main and len(calls) == moment:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "set_num_threads", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model(torch.tensor([[5]]))
    assert (torch.get_num_threads(), lent.count()) == (3, 3)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    model.get_submodule("model.decoder.layers.1").register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    model(torch.tensor([[5]]))
    assert seen == [1, 3]  # a later call can have them again


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_that_is_forked_off_beside_a_call_has_its_own_threads(threads: Callable[[int], None]) -> None:
    threads(3)
    lent.borrow(call := object())
    try:
        if not (child := os.fork()):
            os._exit(0 if lent.count() == torch.get_num_threads() else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        lent.give_back(call)


def test_torch_has_one_thread_in_calls_of_few_tokens_only(
    threads: Callable[[int], None], tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(3)
    model, seen = flashlite.load(tiny_store, predictor="oracle", dram_budget=10**8), []
    norm = model.get_submodule("model.decoder.layers.1.final_layer_norm")
    norm.register_forward_hook(lambda *_: seen.append((torch.get_num_threads(), lent.count())))
    for tokens in (1, FEW, FEW + 1):
        model(torch.arange(5, 5 + tokens)[None])
        assert torch.get_num_threads() == 3
    assert seen == [(1, 3), (1, 3), (3, 3)]
    model.get_submodule("model.decoder.layers.0")(torch.zeros(1, 1, 64))  # a layer by itself has nobody to give back
    assert (torch.get_num_threads(), lent.count()) == (3, 3)
    norm.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(torch.tensor([[5]]))
    assert (torch.get_num_threads(), lent.count()) == (3, 3)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_of_few_or_many_tokens(kind: torch.dtype, bias: bool) -> None:
    model = nn.Sequential(nn.Linear(96, 200, bias, dtype=kind), nn.ReLU(), nn.Linear(200, 8, dtype=kind))
    weights_of = model.state_dict()
    use_rows(model)
    assert [type(layer) for layer in model] == [RowsLinear, nn.ReLU, RowsLinear]
    model.load_state_dict(weights_of, assign=True)
    model.requires_grad_(False)
    first, allowed = model[0], 1e-5 if kind == torch.float32 else 2e-2
    for shape in ((1, 1, 96), (2, 3, 96), (96,), (4, 20, 96)):
        x = torch.randn(shape, dtype=kind)
        expected = nn.functional.linear(x, weights_of["0.weight"], weights_of.get("0.bias"))
        assert first(x).dtype == kind
        torch.testing.assert_close(first(x), expected, atol=allowed, rtol=allowed)
