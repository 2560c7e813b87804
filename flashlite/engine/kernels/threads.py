"""Who has the threads in a call of few tokens: the products of this folder, and not torch's own.

What is left to torch in such a call (norms, sums, attention in bf16 and fp16) is little, and two threads gain next to
nothing over one, except for attention over a long text. Yet torch's threads meet at the end of each operation, and
beside a busy process they wait there for the one that was put aside. Where torch multiplies weights that stream, at the
stages without a predictor, it keeps its threads.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import torch

from flashlite.drive.jobs import Job, Workers


@dataclass(frozen=True)
class _Loan:
    """Torch's threads, while a call has them. call: that call; count: how many there are."""

    call: object
    count: int


_loans: dict[str, _Loan] = {}  # one at most; `setdefault` lets one of several threads win


@functools.cache
def _keeper() -> Workers:
    return Workers(1, "flash-threads")


os.register_at_fork(after_in_child=_loans.clear)  # a call of another thread doesn't go on in the child
os.register_at_fork(after_in_child=_keeper.cache_clear)


def count() -> int:
    """How many threads a product may use."""
    loan = _loans.get("now")
    return torch.get_num_threads() if loan is None else loan.count


def borrow(call: object) -> None:
    """Leave torch one thread until `give_back(call)`, unless another call has its threads."""
    loan = _Loan(call, torch.get_num_threads())
    if loan.count > 1 and _loans.setdefault("now", loan) is loan:
        torch.set_num_threads(1)
        _keeper().submit(Job(functools.partial(_keep_for_others, loan)))


def _keep_for_others(loan: _Loan) -> None:
    """Torch sets this thread's number, and the one of all threads that begin to use it later. Only the first is meant:
    whichever thread begins beside a call would keep a single thread for ever. So another thread sets the second."""
    if _loans.get("now") is loan:
        torch.set_num_threads(loan.count)


def give_back(call: object) -> None:
    """End what `borrow` began. If this call has no threads of torch's, nothing happens, so it may be called twice."""
    loan = _loans.get("now")
    if loan is not None and loan.call is call:
        torch.set_num_threads(loan.count)
        del _loans["now"]
