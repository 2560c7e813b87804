#!/usr/bin/env bash
# safetensors 0.8.0: the same tensors with the same metadata become other bytes in nearly every process, because the
# entries of the metadata are written in an order that is drawn anew each time the program starts. Whoever tells two
# files apart by a digest of their bytes, as a store addressed by content or a reproducible build does, sees a change
# where there is none. Seen on Linux, Python 3.11: eight processes, six to eight different digests.
# What to do: digest the tensors and the sorted metadata, as flashlite does with its predictors, or write one entry.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
cat > "$folder/write.py" <<'PY'
import hashlib

import numpy
from safetensors.numpy import load, save

content = save({"weights": numpy.zeros(2, numpy.float32)}, {name: "1" for name in ("a", "b", "c", "d", "e", "f")})
assert (load(content)["weights"] == 0).all()
print(hashlib.sha256(content).hexdigest())
PY
digests=$(for _ in 1 2 3 4 5 6 7 8; do "$folder/env/bin/python" "$folder/write.py"; done | sort -u | wc -l)
echo "safetensors 0.8.0: 8 processes wrote $digests different files of the same content"
test "$digests" -gt 1
