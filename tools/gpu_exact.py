"""Hold every stage on a device to the dense model's tokens: python tools/gpu_exact.py cuda OUT.json [STAGES].

opt-mini is given the dense model's tokens on the same device, at each stage with the oracle. In float32 it must choose
the same ones. In bf16, at some stages, its logits must be the same but for rounding, which decides between tokens that
are almost as likely. Beside that stands what each stage read, and what it reads on the CPU. Exits with 1 if a stage is
wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import flashlite
from flashlite.arguments import parse_stages
from flashlite.bench.decoding import ALLOWED_ERROR, compare_logits, forced, greedy
from flashlite.bench.dense import load_dense
from flashlite.bench.ladder import prompt_ids
from flashlite.engine.device.place import place_of
from flashlite.errors import FlashliteError
from flashlite.storage.find import open_model
from flashlite.storage.store import Store

TOKENS = 16
IN_BF16 = (0, 3, 5, 6)  # stages


def check(store: Store, stage: int, device: str, prompt: list[int], tokens: list[int], logits: torch.Tensor) -> str:
    """One stage: how far its logits are off, and whether it read as much as on the CPU. Raises FlashliteError."""
    counters = []
    for where in ("cpu", device):
        model = flashlite.load(store, stage=stage, predictor="oracle", device=where)
        found = forced(model, prompt, tokens).logits
        counters.append(model.flash.counters)
    error = float((found - logits).abs().max())
    if store.dtype_name == "fp32":
        compare_logits(found, logits, "fp32", f"stage {stage} on {device}")
    elif not error <= ALLOWED_ERROR[store.dtype_name]:
        raise FlashliteError(f"its logits are off by {error:.3g}")
    return f"off by {error:.2g}, {counters[1].bytes} bytes read ({counters[0].bytes} on the CPU)"


def main() -> None:
    torch.set_grad_enabled(False)
    device, out = sys.argv[1], Path(sys.argv[2])
    stages = parse_stages(sys.argv[3] if len(sys.argv) > 3 else "0-6")
    said, failed = {}, False
    for dtype in ("fp32", "bf16"):
        store = open_model("opt-mini", dtype)
        prompt = prompt_ids(store, 32)
        tokens, logits = greedy(load_dense(store, place_of(device).device), prompt, TOKENS)
        for stage in [stage for stage in stages if dtype == "fp32" or stage in IN_BF16]:
            try:
                said[f"{dtype} stage {stage}"] = check(store, stage, device, prompt, tokens, logits)
            except (FlashliteError, RuntimeError) as error:
                said[f"{dtype} stage {stage}"], failed = f"FAILED: {error}", True
            print(f"{dtype} stage {stage}", said[f"{dtype} stage {stage}"], flush=True)
            out.write_text(json.dumps(said, indent=1) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
