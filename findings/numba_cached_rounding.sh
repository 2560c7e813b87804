#!/usr/bin/env bash
# numba 0.68.1: a function that is kept in Numba's cache can give other bits in the process that compiles it than in all
# later ones, which read it back, if it calls a helper whose sums may be in any order (fastmath "reassoc"). The likely
# reason: in the process that compiles both, the helper's name stands for the helper's own compiled code; the cache keeps
# a second copy of the helper, optimized once more as a part of its caller, and later processes have that copy alone.
# Seen: of three runs of one program on the same numbers, the first one differs from the second, the third doesn't. With
# forceinline=True on the helper all three agree.
# What to do: forceinline=True wherever a cached function calls a helper with fastmath; or don't compare such bits
# between a first run and a later one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet numba==0.68.1 numpy==2.4.6
cat > "$folder/softmax.py" <<'PY'
import hashlib
import math
import os

import numpy as np
from numba import carray, cfunc, njit, types

INLINE = os.environ["INLINE"] == "1"


@njit(fastmath={"reassoc", "contract", "nsz"}, forceinline=INLINE)
def softmax(scores):
    largest, total = scores[0], np.float32(0)
    for i in range(len(scores)):
        largest = max(largest, scores[i])
    for i in range(len(scores)):
        scores[i] = math.exp(scores[i] - largest)
        total += scores[i]
    for i in range(len(scores)):
        scores[i] /= total


def rows(address, count, width):
    for scores in carray(address, (count, width)):
        softmax(scores)


pointer = types.CPointer(types.float32)
code = cfunc(types.void(pointer, types.int64, types.int64), cache=True)(rows)
scores = np.random.default_rng(0).standard_normal((64, 150), dtype=np.float32)
code.ctypes(scores.ctypes.data_as(code.ctypes.argtypes[0]), *scores.shape)
assert np.allclose(scores.sum(1), 1)
print(hashlib.sha256(scores.tobytes()).hexdigest()[:16])
PY
for inline in 0 1; do
    export INLINE=$inline NUMBA_CACHE_DIR="$folder/cache$inline"
    first=$("$folder/env/bin/python" "$folder/softmax.py")
    second=$("$folder/env/bin/python" "$folder/softmax.py")
    third=$("$folder/env/bin/python" "$folder/softmax.py")
    echo "forceinline=$inline: $first $second $third"
    test "$second" = "$third"
    if [ $inline = 0 ]; then test "$first" != "$second"; else test "$first" = "$second"; fi
done
