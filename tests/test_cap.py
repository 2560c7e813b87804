"""The memory cap: what it lets through, what it kills, and that it says so where nothing enforces it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import DynamicCache

from flashlite.bench import cap as cap_module
from flashlite.bench.cap import Cap, fixed_base, memory_cap
from flashlite.bench.dense import load_dense
from flashlite.families.configured import empty_model, read_config
from flashlite.families.known import family_of
from flashlite.storage.pack import pack

CAP = 120_000_000


def run(cap: Cap, code: str) -> int:
    return subprocess.run(cap.wrap([sys.executable, "-c", code]), capture_output=True, check=False).returncode


def test_a_process_within_the_cap_runs_and_one_beyond_it_is_killed() -> None:
    with memory_cap(CAP) as cap:
        if not cap.enforced:
            pytest.skip("this system grants no control group")
        assert run(cap, "bytearray(20_000_000)") == 0
        assert run(cap, "bytearray(400_000_000)") != 0
        if cap.peak_bytes is not None:
            assert cap.peak_bytes <= CAP
    assert cap.group is None or not cap.group.exists()


def test_the_page_cache_counts_but_never_kills(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(2 * CAP))
    with memory_cap(CAP) as cap:
        if not cap.enforced:
            pytest.skip("this system grants no control group")
        assert run(cap, f"f = open({str(path)!r}, 'rb')\nwhile f.read(1000000): pass") == 0
        assert cap.peak_bytes is None or cap.peak_bytes <= CAP


def test_where_nothing_enforces_it_the_command_runs_and_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cap_module, "CGROUPS", tmp_path / "nowhere")
    monkeypatch.setattr(cap_module, "_works", lambda command: False)
    with memory_cap(CAP) as cap:
        assert not cap.enforced
        assert cap.peak_bytes is None
        assert cap.wrap(["true"]) == ["true"]
    assert "is not enforced" in caplog.text


def test_systemd_where_it_is_all_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cap_module, "CGROUPS", tmp_path / "nowhere")
    monkeypatch.setattr(cap_module, "_works", lambda command: command[0] == "systemd-run")
    with memory_cap(CAP) as cap:
        assert cap.how == "systemd"
        assert cap.wrap(["true"])[-1] == "true"
        assert {f"MemoryMax={CAP}", "MemorySwapMax=0"} <= set(cap.wrap(["true"]))


def test_version_2_limits_a_group_beside_our_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a tree that looks like cgroup v2's, for machines that have the other version."""
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    (tmp_path / "user").mkdir()
    monkeypatch.setattr(cap_module, "CGROUPS", tmp_path)
    monkeypatch.setattr(cap_module, "_own_group", lambda controller: "/user" if controller == "" else None)
    monkeypatch.setattr(cap_module, "_works", lambda command: True)
    with memory_cap(CAP) as cap:
        assert cap.how == "cgroup v2"
        assert cap.group is not None
        assert cap.group.parent == tmp_path / "user"
        assert (cap.group / "memory.max").read_text() == str(CAP)


@pytest.mark.parametrize(
    ("version", "limits"),
    [
        ("cgroup v2", {"memory.max": CAP, "memory.swap.max": 0}),
        ("cgroup v1", {"memory.limit_in_bytes": CAP, "memory.memsw.limit_in_bytes": CAP}),
    ],
)
def test_swap_is_no_way_around_the_cap(
    version: str, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a tree whose groups come with the files that the kernel makes."""
    mkdir = Path.mkdir

    def with_files(group: Path) -> None:
        mkdir(group)
        for name in limits:
            (group / name).touch()

    (tmp_path / "memory").mkdir()
    if version == "cgroup v2":
        (tmp_path / "cgroup.controllers").touch()
    monkeypatch.setattr(Path, "mkdir", with_files)
    monkeypatch.setattr(cap_module, "CGROUPS", tmp_path)
    monkeypatch.setattr(cap_module, "_works", lambda command: True)
    with memory_cap(CAP) as cap:
        assert cap.how == version
        assert cap.group is not None
        assert {name: (cap.group / name).read_text() for name in limits} == {n: str(v) for n, v in limits.items()}


def test_a_group_that_cannot_be_entered_is_no_cap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    monkeypatch.setattr(cap_module, "CGROUPS", tmp_path)
    monkeypatch.setattr(cap_module, "_works", lambda command: False)
    monkeypatch.setattr(Path, "rmdir", shutil.rmtree)  # the kernel's files go with their group
    with memory_cap(CAP) as cap:
        assert not cap.enforced
        assert list(tmp_path.glob("flashlite-*")) == []


SIZES = {
    "vocab_size": 32, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 32,
    "max_position_embeddings": 32, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
}  # fmt: skip
FALCON = SIZES | {"model_type": "falcon", "activation": "relu", "ffn_hidden_size": 32}
CACHING: dict[str, tuple[dict[str, Any], int]] = {  # a configuration, and how many numbers of keys a token caches
    "opt": (SIZES | {"model_type": "opt", "ffn_dim": 32, "word_embed_proj_dim": 96}, 96),
    "llama": (SIZES | {"model_type": "llama", "hidden_act": "relu"}, 96),
    "llama, grouped": (SIZES | {"model_type": "llama", "hidden_act": "relu", "num_key_value_heads": 2}, 32),
    "llama, wide": (SIZES | {"model_type": "llama", "hidden_act": "relu", "head_dim": 24}, 144),
    "phi, grouped": (SIZES | {"model_type": "phi", "hidden_act": "relu", "num_key_value_heads": 3}, 48),
    "persimmon": (SIZES | {"model_type": "persimmon"}, 96),
    "falcon, one head": (FALCON, 16),
    "falcon, all heads": (FALCON | {"multi_query": False, "bias": True}, 96),
    "falcon, new": (FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}, 96),
}


@pytest.mark.parametrize("kind", CACHING)
def test_the_cache_that_is_counted_is_the_one_that_transformers_keeps(kind: str, tmp_path: Path) -> None:
    content, numbers = CACHING[kind]
    family = family_of(content)
    model = empty_model(read_config(content, family), family)
    (tmp_path / "config.json").write_text(json.dumps(content))
    weights = {name: torch.zeros(tensor.shape) for name, tensor in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    store = pack(tmp_path, tmp_path / "store", "fp32")
    base = fixed_base(store, 0, prompt_tokens=5, tokens=7)
    assert base.kv_cache == 2 * store.layers * (5 + 7) * numbers * 4
    cache = load_dense(store)(torch.zeros(1, 12, dtype=torch.long), use_cache=True).past_key_values
    assert isinstance(cache, DynamicCache)
    assert base.kv_cache == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
