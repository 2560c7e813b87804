"""Record the trace of the interactive page anew: python tools/site/record_trace.py [SOURCE]

SOURCE    a text; without one, a file of this library that chapters don't ask students to write
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import play_trace
import torch
from transformers import AutoTokenizer

from flashlite.engine.predictor_file import PredictorSet
from flashlite.storage.atomic import new_file
from flashlite.storage.find import open_model
from flashlite.training.train_predictor import collect

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "flashlite/storage/strict_json.py"
TOKENS = 160


def record(text: str) -> dict[str, Any]:
    """What the bundled model's trained predictors name for each token of a text, with the text cut into tokens."""
    store = open_model("opt-mini")
    tokenizer = AutoTokenizer.from_pretrained(store.path)
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :TOKENS]
    said = [i for i, token in enumerate(ids[0].tolist()) if token not in tokenizer.all_special_ids]
    with torch.no_grad():
        activations = collect(store, ids)
    needed = [
        p.mask(a.x.float())[said].numpy() for p, a in zip(PredictorSet.load(store).layers, activations, strict=True)
    ]
    return {
        "model": store.manifest["name"],
        "neurons": store.shape.neurons,
        "recordBytes": store.shape.record_bytes,
        "tokens": [tokenizer.decode([token]) for token in ids[0, said].tolist()],
        "layers": [play_trace.encode([np.flatnonzero(row) for row in mask]) for mask in needed],
    }


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / SOURCE
    recorded = record(source.read_text(encoding="utf-8"))
    with new_file(play_trace.FILE) as path:
        path.write_text(json.dumps(recorded, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
