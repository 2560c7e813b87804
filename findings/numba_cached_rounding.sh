#!/usr/bin/env bash
# numba 0.68.1: a function that is kept in Numba's cache can give other bits in the process that compiles it than in all
# later ones, which read it back. It calls a helper whose sums may be in any order (fastmath "reassoc"). In the process
# that compiles both, the helper's name stands for the helper's own compiled code. The cache keeps a second copy of the
# helper, optimized once more as a part of its caller, and later processes have that copy alone.
# Seen: of three runs of one program on the same numbers, the first one differs from the second, the third doesn't. With
# forceinline=True on the helper all three agree.
# What to do: forceinline=True wherever a cached function calls a helper with fastmath; or don't compare such bits
# between a first run and a later one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet numba==0.68.1 numpy==2.4.6
cat > "$folder/rows.py" <<'PY'
import hashlib
import os

import numpy as np
from numba import cfunc, njit, carray, types

INLINE = os.environ["INLINE"] == "1"
any_order = njit(fastmath={"reassoc", "contract", "nsz"}, forceinline=INLINE)


@any_order
def multiply(matrix, x, out):
    i = 0
    while i + 4 <= len(matrix):
        a, b, c, d = matrix[i], matrix[i + 1], matrix[i + 2], matrix[i + 3]
        for t in range(len(x)):
            of_a = of_b = of_c = of_d = np.float32(0)
            for j in range(len(x[t])):
                of_a += a[j] * x[t, j]
                of_b += b[j] * x[t, j]
                of_c += c[j] * x[t, j]
                of_d += d[j] * x[t, j]
            out[t, i], out[t, i + 1], out[t, i + 2], out[t, i + 3] = of_a, of_b, of_c, of_d
        i += 4


@njit(forceinline=INLINE)
def one_head(matrices, x, out, head):
    multiply(matrices[head], x, out[head])


def heads(matrices, x, out, number, rows, width):
    every, sums = carray(matrices, (number, rows, width)), carray(out, (number, 1, rows))
    for head in range(number):
        one_head(every, carray(x, (1, width)), sums, head)


pointer = types.CPointer(types.float32)
code = cfunc(types.void(pointer, pointer, pointer, types.int64, types.int64, types.int64), cache=True)(heads)
random = np.random.default_rng(0)
matrices, x = (random.standard_normal(shape, dtype=np.float32) for shape in ((8, 152, 128), (1, 128)))
out = np.zeros((8, 1, 152), np.float32)
address = [array.ctypes.data_as(code.ctypes.argtypes[0]) for array in (matrices, x, out)]
code.ctypes(*address, 8, 152, 128)
assert np.allclose(out[:, 0], matrices @ x[0], atol=1e-4)
print(hashlib.sha256(out.tobytes()).hexdigest()[:16])
PY
for inline in 0 1; do
    export INLINE=$inline NUMBA_CACHE_DIR="$folder/cache$inline"
    first=$("$folder/env/bin/python" "$folder/rows.py")
    second=$("$folder/env/bin/python" "$folder/rows.py")
    third=$("$folder/env/bin/python" "$folder/rows.py")
    echo "forceinline=$inline: $first $second $third"
    test "$second" = "$third"
    if [ $inline = 0 ]; then test "$first" != "$second"; else test "$first" = "$second"; fi
done
