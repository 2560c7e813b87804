#!/usr/bin/env bash
# safetensors 0.8.0, numpy 2.4.6: safetensors.numpy.save and save_file write a transposed or Fortran-ordered array with the
# right shape and the wrong numbers. They take the bytes in the order in which they lie in memory and say nothing; up to
# 0.7.0 the same calls wrote such arrays right. The documentation of both versions asks for contiguous arrays, and
# safetensors.torch refuses others with an error. Seen: for a matrix of 3 x 4, its transpose and its Fortran-ordered copy,
# 0.7.0 gives back what was saved, 0.8.0 gives back another matrix.
# What to do: numpy.ascontiguousarray before saving, as flashlite does for the contest's traces.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
cat > "$folder/order.py" <<'PY'
import sys
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import load, load_file, save, save_file

matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
arrays = {"plain": matrix, "transposed": matrix.T, "Fortran order": np.asfortranarray(matrix)}
path = Path(sys.argv[1]) / "arrays.safetensors"
kept = {}
for name, array in arrays.items():
    save_file({"array": array}, path)
    both = load(save({"array": array}))["array"], load_file(path)["array"]
    assert all(found.shape == array.shape for found in both)
    kept[name] = [bool(np.array_equal(found, array)) for found in both]
    print(f"safetensors {safetensors.__version__}: {name}: same numbers from save {kept[name][0]}, save_file {kept[name][1]}")
wrong = safetensors.__version__ == "0.8.0"
assert kept == {name: [name == "plain" or not wrong] * 2 for name in arrays}
PY
for version in 0.7.0 0.8.0; do
    "$folder/env/bin/pip" install --quiet "safetensors==$version" numpy==2.4.6
    "$folder/env/bin/python" "$folder/order.py" "$folder"
done
