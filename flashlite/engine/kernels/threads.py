"""Who has the threads in a call of few tokens: the products of this folder, and not torch's own.

What is left to torch in such a call (norms, attention over the cache, sums) is so little that two threads gain nothing
over one. But torch's threads meet at the end of each operation, and beside a busy process they wait there for the one
that was put aside. Where torch multiplies weights that stream, at the stages without a predictor, it keeps its threads.
"""

from __future__ import annotations

import torch

_owner: dict[str, object] = {}  # the call that has the threads; `setdefault` lets one of several threads win
_lent = 0  # how many there are, while a call has them


def count() -> int:
    """How many threads a product may use."""
    return _lent or torch.get_num_threads()


def borrow() -> bool:
    """Leave torch one thread until `give_back`. Returns whether that is to be called: not if another call has them."""
    global _lent
    me = object()
    if _owner.setdefault("call", me) is not me:
        return False
    _lent = torch.get_num_threads()
    torch.set_num_threads(1)
    return True


def give_back() -> None:
    """End what `borrow` began."""
    global _lent
    torch.set_num_threads(_lent)
    _lent = 0
    _owner.clear()
