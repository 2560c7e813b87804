"""Calls of a model one after the other, whichever thread makes them, in the process that loaded it."""

from __future__ import annotations

import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flashlite.errors import FlashliteError

_first_process: int | None = None  # that loaded a model


def check_process() -> None:
    """Raise FlashliteError in a process that was forked off one with a model, if torch is to compute with threads: they
    exist in the other process alone, and the first product would wait for them for ever."""
    global _first_process
    _first_process = _first_process or os.getpid()
    if _first_process != os.getpid() and torch.get_num_threads() > 1:
        raise FlashliteError(
            "this process was forked off one with a model, and torch's threads are only there: "
            "call torch.set_num_threads(1) in this one, or start processes by 'spawn'"
        )


class Turns:
    """Turns that threads take, one at a time.

    mend: called before the turn after one that was broken off by an error or an interrupt. Raises what `check_process`
    raises.
    """

    def __init__(self, mend: Callable[[], None]) -> None:
        check_process()
        self._mend, self._lock, self._process = mend, threading.RLock(), os.getpid()
        self._caller: int | None = None
        self._broken = False

    def take(self, work: Callable[[], Any]) -> Any:
        """Wait for the other threads' turns, do some work in one of one's own and return what it returns; within a turn
        it is just done.

        Raises FlashliteError in a process that was forked off after the model was loaded.
        """
        if self._process != os.getpid():
            raise FlashliteError(
                "the model was loaded in another process, whose reads it needs: load it again in this one"
            )
        if self._caller == (me := threading.get_ident()):
            return work()
        try:  # and not `with`, nor a generator: an interrupt can come between their beginning and their block
            self._lock.acquire()
            self._caller = me
            if self._broken:
                self._mend()
            self._broken = True
            result = work()
            self._broken = False
            return result
        finally:
            if self._caller == me:
                self._caller = None
            try:  # noqa: SIM105
                self._lock.release()
            except RuntimeError:  # it was still waiting
                pass


def within(module: nn.Module, span: Callable[[Callable[[], Any]], Any]) -> None:
    """Have every call of a module be `span(call)`. Torch's hooks won't do: none runs after an interrupt."""
    forward, this = type(module).forward, weakref.ref(module)  # a module that held itself would outlive its owner

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        return span(lambda: forward(this(), *args, **kwargs))

    call.__signature__ = inspect.signature(module.forward)  # type: ignore[attr-defined]
    module.forward = call
