"""A few tokens' products with picked rows of a matrix: what the sparse FFN is made of. (Paper: section 3.3)

A row is read where it lies, once, and its weights become float32 on their way into the processor's registers. So rows
may lie anywhere in a pool, and rows of int8 or bf16 take the time that their bytes take.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numba import carray, njit, types
from torch import Tensor

from flashlite.engine.kernels.native import BF16, FP16, pointer, widened
from flashlite.engine.kernels.team import FIRST, PARTS, Body, compiled, job_at, note_done, run, take

FEW = 8  # tokens; where torch has a product for more of them, it is faster
SHARED_BYTES = 2**21  # of rows that are multiplied; fewer are done before a thread wakes
PART_BYTES, MOST_PARTS = 2**17, 64  # of rows in a part, at least; small parts end together
SUM_PARTS = 16  # most parts of a sum, because each has its own
ROWS, STRIDE, X, WIDTH, PICKED, COUNT, OUT, TOKENS = range(FIRST, FIRST + 8)  # of a job's numbers
KINDS = {torch.float32: types.float32, torch.bfloat16: BF16, torch.float16: FP16, torch.int8: types.int8}
FLOAT32: Any = {"dtype": torch.float32, "device": "cpu"}  # whatever a user has made torch's defaults
# Sums are in whichever order suits the processor. That order must be the same in every process, so such a function
# becomes a part of whatever calls it: called by name, it would be other code in the process that compiles it than in
# those that read it back from Numba's cache.
any_order = njit(fastmath={"reassoc", "contract", "nsz"}, forceinline=True)


@any_order
def multiply(matrix: Any, x: Any, rows: Any, out: Any, begin: int, end: int) -> None:
    """Each of x's rows times picked rows of a matrix, number begin to end of them: out [tokens, picked]."""
    i = begin
    while i + 4 <= end:  # four rows at a time: their sums don't wait for each other
        a, b, c, d = matrix[rows[i]], matrix[rows[i + 1]], matrix[rows[i + 2]], matrix[rows[i + 3]]
        for t in range(len(x)):
            of_a = of_b = of_c = of_d = np.float32(0)
            of_token = x[t]
            for j in range(len(of_token)):
                of_a += widened(a[j]) * of_token[j]
                of_b += widened(b[j]) * of_token[j]
                of_c += widened(c[j]) * of_token[j]
                of_d += widened(d[j]) * of_token[j]
            out[t, i], out[t, i + 1], out[t, i + 2], out[t, i + 3] = of_a, of_b, of_c, of_d
        i += 4
    while i < end:
        a = matrix[rows[i]]
        for t in range(len(x)):
            of_a = np.float32(0)
            of_token = x[t]
            for j in range(len(of_token)):
                of_a += widened(a[j]) * of_token[j]
            out[t, i] = of_a
        i += 1


@any_order
def add_up(matrix: Any, h: Any, rows: Any, out: Any, begin: int, end: int) -> None:
    """The sum of picked rows of a matrix, number begin to end of them, by the weights h [tokens, picked]: out."""
    out[:] = 0
    i = begin
    while i + 4 <= end:  # four rows at a time: the sum is fetched and stored once for all of them
        a, b, c, d = matrix[rows[i]], matrix[rows[i + 1]], matrix[rows[i + 2]], matrix[rows[i + 3]]
        for t in range(len(h)):
            h_a, h_b, h_c, h_d = h[t, i], h[t, i + 1], h[t, i + 2], h[t, i + 3]
            of_token = out[t]
            for j in range(len(of_token)):
                of_token[j] += h_a * widened(a[j]) + h_b * widened(b[j]) + h_c * widened(c[j]) + h_d * widened(d[j])
        i += 4
    while i < end:
        a = matrix[rows[i]]
        for t in range(len(h)):
            of_token = out[t]
            for j in range(len(of_token)):
                of_token[j] += h[t, i] * widened(a[j])
        i += 1


def _products(address: int, weights: Any) -> None:
    job = job_at(address)
    parts, count, tokens = job[PARTS], job[COUNT], job[TOKENS]
    matrix = carray(weights, (job[ROWS], job[STRIDE]))
    x = carray(pointer(job[X]), (tokens, job[WIDTH]), types.float32)
    rows = carray(pointer(job[PICKED]), count, types.int64)
    out = carray(pointer(job[OUT]), (tokens, count), types.float32)
    part = take(address)
    while part < parts:
        multiply(matrix, x, rows, out, part * count // parts, (part + 1) * count // parts)
        note_done(address)
        part = take(address)


def _sums(address: int, weights: Any) -> None:
    job = job_at(address)
    parts, count, tokens = job[PARTS], job[COUNT], job[TOKENS]
    matrix = carray(weights, (job[ROWS], job[STRIDE]))
    h = carray(pointer(job[X]), (tokens, count), types.float32)
    rows = carray(pointer(job[PICKED]), count, types.int64)
    out = carray(pointer(job[OUT]), (parts, tokens, job[WIDTH]), types.float32)
    part = take(address)
    while part < parts:
        add_up(matrix, h, rows, out[part], part * count // parts, (part + 1) * count // parts)
        note_done(address)
        part = take(address)


@functools.cache
def _kernel(function: Any, dtype: torch.dtype) -> Body:
    return compiled(function, KINDS[dtype])


def products(x: Tensor, matrix: Tensor, rows: np.ndarray) -> Tensor:
    """x times picked rows of a matrix: [tokens, n] float32, column i for row rows[i].

    x: [tokens, width]
    matrix: [rows, at least width]; its columns are contiguous, and may be some columns of a wider matrix
    rows: [n] int64
    """
    out = torch.empty(len(x), len(rows), **FLOAT32)
    parts = parts_of(len(rows) * x.shape[1] * matrix.itemsize)
    _run(_products, matrix, x, x.shape[1], rows, out, parts)
    return out


def weighted_sum(h: Tensor, matrix: Tensor, rows: np.ndarray, width: int) -> Tensor:
    """For each token the sum of picked rows of a matrix, each times its weight: [tokens, width] float32.

    h: [tokens, n], the weight of each row
    matrix, rows: see `products`
    width: how many columns count

    The same rows are added in the same order on every run, whatever the threads do.
    """
    parts = min(SUM_PARTS, parts_of(len(rows) * width * matrix.itemsize))
    out = torch.empty(parts, len(h), width, **FLOAT32)
    _run(_sums, matrix, h, width, rows, out, parts)
    return torch.from_numpy(out.numpy().sum(0)) if parts > 1 else out[0]  # torch would wake threads for so little


def parts_of(nbytes: int) -> int:
    """Into how many parts a product is cut that reads so many bytes."""
    return min(MOST_PARTS, nbytes // PART_BYTES) if nbytes >= SHARED_BYTES else 1


def _run(function: Any, matrix: Tensor, x: Tensor, width: int, rows: np.ndarray, out: Tensor, parts: int) -> None:
    x, rows = x.to(**FLOAT32).contiguous(), np.ascontiguousarray(rows, np.int64)
    numbers = len(matrix), matrix.stride(0), x.data_ptr(), width, rows.ctypes.data, len(rows), out.data_ptr(), len(x)
    run(_kernel(function, matrix.dtype), matrix.data_ptr(), parts, numbers, (matrix, x, rows, out))
