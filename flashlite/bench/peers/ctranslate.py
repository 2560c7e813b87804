"""CTranslate2: the model quantised to int8, all of it in DRAM. `pip install ctranslate2`

It quantises the checkpoint anew, each matrix with a scale for each output. So a down projection's weights are rounded
along the other side than in a store, and inputs of products are int8 there too. Its tokens may differ, and are counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flashlite.bench.decoding import Decoding
from flashlite.errors import FlashliteError
from flashlite.storage.store import Store

PACKAGE = "ctranslate2"
FOLDER, VOCABULARY = "ctranslate2", "vocabulary.json"
INT8 = "int8"


def convert(checkpoint: Path) -> None:
    """Make its model of a checkpoint, in a folder in it. Raises FlashliteError with its own last words if it fails.

    A process of its own does that, so that the memory for it is free again afterwards.
    """
    if (checkpoint / FOLDER).exists():
        return
    found = subprocess.run([sys.executable, "-m", __name__, str(checkpoint)], capture_output=True, text=True)
    if found.returncode:
        words = (found.stderr.strip().splitlines() or ["no message"])[-1]
        raise FlashliteError(f"CTranslate2 doesn't convert this model: {words}")


@dataclass(frozen=True)
class Model:
    """A generator of CTranslate2, and the names of the tokens, by which it is asked."""

    generator: Any
    names: list[str]


def load(store: Store, checkpoint: Path, device: torch.device) -> Model:
    """Its model, with as many threads as torch has."""
    import ctranslate2

    folder = checkpoint / FOLDER
    generator = ctranslate2.Generator(str(folder), compute_type=INT8, intra_threads=torch.get_num_threads())
    return Model(generator, json.loads((folder / VOCABULARY).read_text()))


def decode(model: Model, prompt: list[int], tokens: list[int]) -> Decoding:
    """Time as many tokens as it writes by itself; what it would have chosen in place of `tokens` is asked after that.

    It is asked not to repeat the prompt in its result, because it would walk through it token by token.
    """
    times = [time.perf_counter()]

    def note(step: Any) -> bool:
        times.append(time.perf_counter())
        return False

    names = [model.names[i] for i in (*prompt, *tokens[:-1])]
    model.generator.generate_batch(
        [names[: len(prompt)]], max_length=len(tokens), min_length=len(tokens), beam_size=1, sampling_topk=1,
        include_prompt_in_result=False, callback=note,
    )  # fmt: skip
    milliseconds = [1e3 * (after - before) for before, after in pairwise(times)]
    found = np.array(model.generator.forward_batch([names]))[0, len(prompt) - 1 :]
    return Decoding(milliseconds[0], milliseconds[1:], found.argmax(-1).tolist(), torch.from_numpy(found))


def _convert(checkpoint: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    class Converter(TransformersConverter):  # type: ignore[misc]
        """Its own, but for a vocabulary that is smaller than the model's: that of a planted model."""

        def load_tokenizer(self, *args: Any, **kwargs: Any) -> Any:
            tokenizer = super().load_tokenizer(*args, **kwargs)
            size = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
            tokenizer.add_tokens([f"<filler {i}>" for i in range(len(tokenizer), size)])
            return tokenizer

    Converter(str(checkpoint)).convert(str(checkpoint / FOLDER), quantization=INT8)


if __name__ == "__main__":
    _convert(Path(sys.argv[1]))
