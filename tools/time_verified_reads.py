"""What `--verify-reads` costs a token: python tools/time_verified_reads.py. Writes results/verified-reads.json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import flashlite
from flashlite.bench.decoding import greedy
from flashlite.bench.ladder import prompt_ids
from flashlite.bench.machine import drive, host
from flashlite.storage.atomic import write_file
from flashlite.storage.find import open_model

ROOT = Path(__file__).parent.parent
STAGE, ROUNDS, PROMPT, TOKENS = 5, 9, 32, 32


def main() -> None:
    store = open_model("opt-mini")
    prompt = prompt_ids(store, PROMPT)
    models = [flashlite.load(store, stage=STAGE, verify_reads=verify) for verify in (False, True)]
    for _ in range(ROUNDS):
        texts = [greedy(model, prompt, TOKENS)[0] for model in models]
        assert texts[0] == texts[1]
    plain, verified = (
        float(np.median([call.total_ms for call in model.flash.calls if call.tokens == 1])) for model in models
    )
    result = {
        "machine": host().to_json() | drive(store.path).to_json(),
        "model": "opt-mini", "dtype": store.dtype_name, "stage": STAGE,
        "tokens": ROUNDS * (TOKENS - 1), "plain_ms": plain, "verified_ms": verified,
    }  # fmt: skip
    write_file(ROOT / "results/verified-reads.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
