"""lm-evaluation-harness measures a streaming model as it measures the dense one, on tasks that need no network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

import flashlite
from flashlite.storage.hub import BUNDLED

pytestmark = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed: pip install -e '.[eval]'"
)

TASKS = {"multiple_choice": "next_line", "generate_until": "written_on", "loglikelihood_rolling": "likely"}
Samples = dict[str, list[dict[str, Any]]]  # by task


def measured(model: Any, folder: Path, batch: int) -> Samples:
    """What the harness notes of each document."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tasks = TaskManager(include_path=str(ROOT / "tests/harness"), include_defaults=False)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
    result = simple_evaluate(wrapped, tasks=list(TASKS.values()), task_manager=tasks, bootstrap_iters=0)
    assert result is not None
    return {
        task: sorted(samples, key=lambda sample: sample["doc_id"]) for task, samples in result["samples"].items()
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tasks name their data from the clone's folder; what is made of it goes to a folder of the test."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(("name", "batch"), [("opt-mini", 1), ("opt-mini", 4), ("falcon-mini", 4)])
def test_the_harness_measures_what_it_measures_of_the_dense_model(name: str, batch: int) -> None:
    folder = BUNDLED[name]
    dense = measured(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), folder, batch)
    model = flashlite.load(name, dram_budget="75%", predictor="oracle", dtype="fp32")
    found = measured(model, folder, batch)
    assert found.keys() == set(TASKS.values())
    compared = 0
    for task in found:
        for one, other in zip(found[task], dense[task], strict=True):
            assert one["doc"] == other["doc"]
            for answers in zip(one["resps"], other["resps"], strict=True):
                compared += 1
                check(*(answer[0] for answer in answers))
            assert one.get("acc") == other.get("acc")
            assert one.get("exact_match") == other.get("exact_match")
    assert compared == 6 * (4 + 1 + 1)
    calls = model.flash.calls
    assert sum(call.bytes for call in calls) > 0


def check(found: Any, expected: Any) -> None:
    """Texts are the same, log-likelihoods nearly so."""
    if isinstance(expected, str):
        assert found == expected
    elif isinstance(expected, tuple):  # and whether each token was the likeliest
        assert found == (pytest.approx(expected[0], abs=1e-4), expected[1])
    else:
        assert found == pytest.approx(expected, abs=1e-4)
