"""What test_interrupted.py kills: `python writers.py` imports once, then forks a writer for each line of JSON.

A line says what to write and what comes in between; the answer is a line too, {"killed": ..., "error": ..., ...}.

    program, out, source   pack, synth, train or save; where to; what from
    options                of `pack`
    swaps                  false: as if two names couldn't change places in one step
    delay, step            SIGKILL after so many seconds, or just before that step in the file system
    largest                bytes beyond which no file may grow, as if the drive were full
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import OPTConfig

from flashlite.engine.predictor_file import PredictorSet
from flashlite.errors import FlashliteError
from flashlite.storage import atomic
from flashlite.storage.find import open_model
from flashlite.storage.pack import pack
from flashlite.storage.store import PREDICTOR, Store
from flashlite.training import planted as synth
from flashlite.training import train_predictor

SMALL = OPTConfig(
    vocab_size=4096, hidden_size=64, word_embed_proj_dim=64, ffn_dim=256, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=160,
)  # fmt: skip
STEPS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "open"}


def write(job: dict[str, Any]) -> None:
    """Do what a line asks for."""
    out, source = Path(job["out"]), Path(job.get("source", ""))
    if job["program"] == "pack":
        pack(source, out, **job.get("options", {}))
    elif job["program"] == "open":
        os.environ["FLASHLITE_HOME"] = str(out)
        open_model(source)
    elif job["program"] == "synth":
        synth.published_config = lambda name: SMALL
        synth.synth("opt-small", out, "fp32")
    elif job["program"] == "train":
        train_predictor.STEPS = 3
        store, generator = Store(out), torch.Generator().manual_seed(0)
        windows, held_out = torch.randint(3, 128, (2, 4, 64), generator=generator)
        train_predictor.train_predictors(store, windows, held_out).save(store.path / PREDICTOR)
    else:
        store = Store(source)
        PredictorSet.load(store).save(out)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Write, unless something comes in between. Returns what came of it: error, seconds, steps in the file system."""
    began, steps, error = time.perf_counter(), [0], None

    def count(event: str, args: tuple[Any, ...]) -> None:
        if event in STEPS and not (event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)):
            steps[0] += 1
            if steps[0] == job.get("step"):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    swapped = atomic._swapped

    def counted(one: Path, other: Path) -> bool:
        sys.audit("os.rename", one, other, -1, -1)  # as Python tells of its own calls
        return swapped(one, other)

    atomic._swapped = counted if job.get("swaps", True) else lambda one, other: False
    if job.get("delay") is not None:
        threading.Timer(job["delay"], os.kill, (os.getpid(), signal.SIGKILL)).start()
    if job.get("largest") is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest"], job["largest"]))
    try:
        write(job)
    except FlashliteError as failure:
        error = str(failure)
    return {"error": error, "seconds": time.perf_counter() - began, "steps": steps[0]}


def main() -> None:
    """Fork a writer for each line."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        receive, send = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(send, json.dumps(run(json.loads(line))).encode())
            os._exit(0)
        os.close(send)
        with os.fdopen(receive) as pipe:
            answer = pipe.read()
        killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        print(json.dumps({"killed": killed, **json.loads(answer or "{}")}), flush=True)


if __name__ == "__main__":
    main()
