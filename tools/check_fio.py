"""Compare flashlite's native AIO reads with fio's on the same file, alternating: python tools/check_fio.py [FOLDER].

fio is a Debian package, needed for this check alone. Prints throughput of both and their ratio for each size and depth.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np

from flashlite.drive.probe import random_mb_s, scratch_file

SIZES, DEPTHS, ROUNDS = (4096, 8192, 16384, 32768), (32, 128), 9


def fio_mb_s(path: Path, size: int, depth: int) -> float:
    """Throughput of fio's random direct reads by libaio, in MB/s."""
    command = (
        f"fio --name=check --filename={path} --rw=randread --direct=1 --ioengine=libaio --bs={size} --iodepth={depth} "
        f"--iodepth_batch_submit={depth} --iodepth_batch_complete_max={depth} --runtime=1 --time_based --readonly "
        "--output-format=json"
    )
    done = subprocess.run(command.split(), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["jobs"][0]["read"]["bw_bytes"] / 1e6


def main() -> None:
    rng = np.random.default_rng(0)
    with scratch_file(Path(sys.argv[1] if len(sys.argv) > 1 else "."), 2**29) as path:
        for size in SIZES:
            for depth in DEPTHS:
                pairs = [(random_mb_s(path, size, depth, rng), fio_mb_s(path, size, depth)) for _ in range(ROUNDS)]
                ours, theirs = (median(column) for column in zip(*pairs, strict=True))
                ratio = median(a / b for a, b in pairs)
                rates = f"flashlite {ours:6.0f} MB/s, fio {theirs:6.0f}, ratio {ratio:.2f}"
                print(f"{size:6d} bytes, {depth:3d} in flight: {rates}")


if __name__ == "__main__":
    main()
