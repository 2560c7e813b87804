"""What compiled code needs beyond NumPy: memory by its address, weights as float32, and a counter for threads."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import cfunc, types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

log = logging.getLogger("flashlite")

BF16, FP16 = types.int16, types.uint16  # the integers that stand for the bits of these weights
HALF = 16  # bits


@intrinsic
def pointer(typing: Any, address: Any) -> Any:
    """The memory at an address, for `carray`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def widened(typing: Any, weight: Any) -> Any:
    """A weight as float32: int8, float32, or the bits of bf16 and fp16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = arguments[0]
        if weight == types.int8:
            return builder.sitofp(bits, ir.FloatType())
        if weight == BF16:  # the upper half of the float32
            wide = builder.zext(bits, ir.IntType(2 * HALF))
            return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(2 * HALF), HALF)), ir.FloatType())
        return builder.fpext(builder.bitcast(bits, ir.HalfType()), ir.FloatType()) if weight == FP16 else bits

    if weight not in {types.int8, BF16, FP16, types.float32}:
        raise TypingError(f"no weight is a {weight}")
    return types.float32(weight), generate


@intrinsic
def fetch_add(typing: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address, as one step for all threads. Returns what it was before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


def native(signature: Any, function: Any) -> Any:
    """A function compiled for a signature, to be called by its address; without Python's lock, if by ctypes.

    The code is kept beside the source or in the user's cache folder, so that it is compiled once; where neither can be
    written, each process compiles it. One line is logged where a drive is full, or what was kept is damaged.
    """
    try:
        return cfunc(signature, cache=True)(function)
    except RuntimeError:  # there is nowhere to keep it
        return cfunc(signature)(function)
    except Exception as error:  # whatever unpickling raises
        code = cfunc(signature)(function)  # this raises what is wrong with the function itself
        _say_once(f"{type(error).__name__}: {error}")
        return code


@functools.cache
def _say_once(why: str) -> None:
    log.warning(
        "flashlite: compiled code can't be kept or read back, so every start compiles it anew (%s): make room on the "
        "drive, or delete *.nbi and *.nbc in %s and in Numba's cache folder", why, Path(__file__).parent / "__pycache__"
    )  # fmt: skip
