"""Checkpoints: every published form packs to the same bytes, the published sizes compute, and bad files are refused."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model, save_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import OPTForCausalLM

import flashlite
from flashlite.bench.decoding import greedy
from flashlite.engine.stages import LADDER
from flashlite.errors import CheckpointError
from flashlite.storage.bundle import round_up
from flashlite.storage.pack import pack
from flashlite.storage.safetensors_file import DTYPES
from flashlite.storage.store import Store

PROMPT = list(range(3, 40, 4))
FC1 = "model.decoder.layers.1.fc1.weight"


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Change a checkpoint's tensors: the file that holds the embeddings, if there are shards."""
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin")):
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
        if any("embed_tokens" in name for name in state):
            edit(state)
            save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


def edit_config(folder: Path, **changes: object) -> None:
    """Change fields of a checkpoint's config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def add_head(state: dict[str, Tensor]) -> None:
    """Add the copy of the embeddings that some published files hold."""
    state["lm_head.weight"] = next(t for name, t in state.items() if "embed_tokens" in name).clone()


def assert_refused(folder: Path, out: Path, match: str) -> None:
    """Packing must fail with one line and write nothing."""
    with pytest.raises(CheckpointError, match=match) as error:
        pack(folder, out)
    assert "\n" not in str(error.value)
    assert not out.exists()


# Every published form


@pytest.mark.parametrize("head", [False, True], ids=["no-head", "head"])
@pytest.mark.parametrize("prefix", ["decoder.", "model.decoder."])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_every_published_form_packs_to_the_same_bytes(
    kind: str, shards: int, prefix: str, head: bool, tiny_model: OPTForCausalLM, tiny_store: Store, tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tiny_model, tmp_path / "checkpoint", kind, shards, prefix)
    if head:
        edit_weights(checkpoint, add_head)
    assert pack(checkpoint, tmp_path / "store").manifest["files"] == tiny_store.manifest["files"]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_float16_as_published_is_packed_to_float32_exactly(kind: str, tmp_path: Path) -> None:
    rounded = make_model().half().float()
    published = save_checkpoint(rounded, tmp_path / "published", kind, dtype=torch.float16)
    reference = save_checkpoint(rounded, tmp_path / "reference")
    stores = [pack(folder, tmp_path / f"{folder.name}-store", "fp32") for folder in (published, reference)]
    assert stores[0].manifest["files"] == stores[1].manifest["files"]


def test_tensor_that_the_model_has_no_use_for_is_left_out(
    tiny_model: OPTForCausalLM, tiny_store: Store, tmp_path: Path
) -> None:
    checkpoint = save_checkpoint(tiny_model, tmp_path / "checkpoint", "bin", prefix="decoder.")
    edit_weights(checkpoint, lambda state: state.update({"decoder.version": torch.tensor([3.0])}))
    assert pack(checkpoint, tmp_path / "store").manifest["files"] == tiny_store.manifest["files"]


def test_configuration_with_fewer_layers_packs_the_first_ones(
    tiny_checkpoint: Path, tiny_store: Store, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    edit_config(checkpoint, num_hidden_layers=2)
    files = pack(checkpoint, tmp_path / "store").manifest["files"]
    for name, entry in tiny_store.manifest["files"].items():
        assert files[name]["sha256"] == {t: d for t, d in entry["sha256"].items() if "layers.2." not in t}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_checkpoint_that_was_replaced_is_read_anew(kind: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        shutil.rmtree(tmp_path / "checkpoint", ignore_errors=True)
        save_checkpoint(model := make_model(seed), tmp_path / "checkpoint", kind)
        store = pack(tmp_path / "checkpoint", tmp_path / f"store{seed}", layouts=("split",))
        up = load_file(store.path / "ffn-split.safetensors")["layers.0.up"]
        assert torch.equal(up.view(torch.float32), model.model.decoder.layers[0].fc1.weight)


def test_tensor_that_repeats_its_numbers_is_packed(tmp_path: Path) -> None:
    """An expanded tensor is larger than what the file holds of it. In a process of its own, for it may crash."""
    model = make_model(vocab_size=50_000)
    torch.nn.init.constant_(model.model.decoder.embed_tokens.weight, 0.5)
    expected = pack(save_checkpoint(model, tmp_path / "plain"), tmp_path / "plain-store")
    name, expanded = "model.decoder.embed_tokens.weight", torch.full((1, 1), 0.5).expand(50_000, 64)
    edit_weights(save_checkpoint(model, tmp_path / "bin", "bin"), lambda state: state.update({name: expanded}))
    script = "import sys, flashlite; flashlite.pack(sys.argv[1], sys.argv[2])"
    assert run_python(script, tmp_path / "bin", tmp_path / "store").returncode == 0
    assert Store(tmp_path / "store").manifest["files"] == expected.manifest["files"]


# The published sizes


@pytest.fixture(scope="module")
def opt_350m(tmp_path_factory: pytest.TempPathFactory) -> tuple[OPTForCausalLM, Store]:
    """Two layers of OPT-350m, which norms after each block and projects its embeddings to twice their width."""
    folder = tmp_path_factory.mktemp("350m")
    model = make_model(
        hidden_size=1024, word_embed_proj_dim=512, ffn_dim=4096, num_hidden_layers=2, num_attention_heads=16,
        do_layer_norm_before=False, vocab_size=512, max_position_embeddings=2048,
    )  # fmt: skip
    save_checkpoint(model, folder / "opt-350m", "bin", prefix="decoder.")
    edit_config(folder / "opt-350m", _remove_final_layer_norm=False, prefix="</s>", torch_dtype="float16")
    return model, pack(folder / "opt-350m", folder / "store", "fp32")


@pytest.fixture(scope="module")
def opt_125m(tmp_path_factory: pytest.TempPathFactory) -> tuple[OPTForCausalLM, Path]:
    """Two layers of OPT-125m. The seed is one whose tokens are far from a tie."""
    model = make_model(
        7, hidden_size=768, word_embed_proj_dim=768, ffn_dim=3072, num_hidden_layers=2, num_attention_heads=12,
        vocab_size=512, max_position_embeddings=2048,
    )  # fmt: skip
    return model, save_checkpoint(model, tmp_path_factory.mktemp("125m") / "opt-125m", "bin", prefix="decoder.")


def assert_like_dense(dense: OPTForCausalLM, store: Store, stage: str, tolerance: float) -> None:
    """A stage with the oracle must choose the dense model's tokens and compute its logits."""
    expected, expected_logits = greedy(dense, PROMPT, 6)
    best, second = expected_logits.topk(2).values.unbind(1)
    assert (best - second).min() > 4 * tolerance, "the tokens of this test must be clear ones"
    tokens, logits = greedy(
        flashlite.load(store, dram_budget="60%", stage=stage, predictor="oracle"), PROMPT, len(expected)
    )
    assert tokens == expected
    assert (logits - expected_logits).abs().max() <= tolerance


def test_opt_350m_keeps_its_projections_and_has_no_last_norm(opt_350m: tuple[OPTForCausalLM, Store]) -> None:
    store = opt_350m[1]
    names = {name for name in load_file(store.path / "resident.safetensors") if ".layers." not in name}
    kinds = ("embed_tokens", "embed_positions", "project_in", "project_out")
    assert names == {f"model.decoder.{kind}.weight" for kind in kinds}
    assert store.shape.record_bytes == 8192


@pytest.mark.parametrize("stage", LADDER)
def test_opt_350m_computes_what_the_dense_model_does(stage: str, opt_350m: tuple[OPTForCausalLM, Store]) -> None:
    assert_like_dense(*opt_350m, stage, 1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05)])
@pytest.mark.parametrize("stage", ["resident", "pool"])
def test_opt_125m_computes_what_the_dense_model_does(
    stage: str, dtype: str, tolerance: float, opt_125m: tuple[OPTForCausalLM, Path], tmp_path: Path
) -> None:
    model, checkpoint = opt_125m
    store = pack(checkpoint, tmp_path / "store", dtype)
    published_bytes = 2 * 768 * DTYPES[dtype].itemsize  # of a neuron; 3072 as bf16, which is less than a page
    assert store.shape.record_bytes == round_up(published_bytes, store.shape.alignment)
    assert_like_dense(copy.deepcopy(model).to(DTYPES[dtype]), store, stage, tolerance)


# What is refused


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be spoilt."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"activation_function": "gelu"}, "activation 'gelu' is not supported: only ReLU"),
        ({"model_type": "bert"}, "model type 'bert' is not supported: flashlite streams opt, falcon"),
        ({"model_type": None}, "model type None is not supported"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_model_of_another_kind_is_refused(
    changes: dict[str, Any], match: str, checkpoint: Path, tmp_path: Path
) -> None:
    edit_config(checkpoint, **changes)
    assert_refused(checkpoint, tmp_path / "store", match)


@pytest.mark.parametrize(
    "changes",
    [
        {"ffn_dim": 128}, {"hidden_size": 32, "word_embed_proj_dim": 32}, {"vocab_size": 64}, {"num_hidden_layers": 4},
        {"max_position_embeddings": 64}, {"word_embed_proj_dim": 32},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("layout", ["split", "bundled"])
def test_weights_that_do_not_fit_the_configuration_are_refused(
    layout: str, changes: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    edit_config(checkpoint, **changes)
    with pytest.raises(CheckpointError, match=r"model\.decoder\.") as error:
        pack(checkpoint, tmp_path / "store", layouts=(layout,))
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("name", ["embed_tokens.weight", "layers.2.fc2.weight", "layers.1.self_attn.q_proj.weight",
                                  "layers.0.fc1.bias", "final_layer_norm.weight"])  # fmt: skip
def test_missing_tensor_is_named(name: str, checkpoint: Path, tmp_path: Path) -> None:
    edit_weights(checkpoint, lambda state: state.pop(f"model.decoder.{name}"))
    assert_refused(checkpoint, tmp_path / "store", re.escape(f"model.decoder.{name}"))


def test_missing_configuration_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "config.json").unlink()
    assert_refused(checkpoint, tmp_path / "store", r"has no config\.json: is it a checkpoint folder\?")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"null"])
def test_malformed_configuration_is_named(content: bytes, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "config.json").write_bytes(content)
    assert_refused(checkpoint, tmp_path / "store", r"config\.json is not")


def test_missing_weights_are_named(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert_refused(checkpoint, tmp_path / "store", r"holds no weights: expected one of model\.safetensors, ")


def test_file_instead_of_a_folder_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    assert_refused(checkpoint / "model.safetensors", tmp_path / "store", "is a file: name the folder")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_missing_shard_is_named(kind: str, tiny_model: OPTForCausalLM, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tiny_model, tmp_path / "checkpoint", kind, shards=3)
    next(checkpoint.glob(f"*-00002-of-00003.{kind}")).unlink()
    assert_refused(checkpoint, tmp_path / "store", f"lacks the shard .*-00002-of-00003.{kind}")


@pytest.mark.parametrize("shard", ["../x.bin", "/x.bin", "sub/x.bin"])
def test_shard_outside_the_folder_is_refused(shard: str, tiny_model: OPTForCausalLM, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tiny_model, tmp_path / "checkpoint", "bin", shards=2)
    torch.save({FC1: torch.zeros(256, 64)}, tmp_path / "x.bin")
    index = {"weight_map": {FC1: shard}}
    (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_refused(checkpoint, tmp_path / "store", "names a shard outside its folder")


@pytest.mark.parametrize("index", [[], {}, {"weight_map": []}, {"weight_map": {FC1: 5}}, {"weight_map": {}}], ids=str)
def test_malformed_shard_index_is_named(index: object, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(checkpoint, tmp_path / "store", re.escape(str(checkpoint)))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_truncated_weights_are_refused(kind: str, share: float, tiny_model: OPTForCausalLM, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tiny_model, tmp_path / "checkpoint", kind)
    weights = next(checkpoint.glob(f"*.{kind}"))
    os.truncate(weights, int(share * weights.stat().st_size))
    assert_refused(checkpoint, tmp_path / "store", f"{weights.name} cannot be read as weights: it is truncated")


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2)], ids=["list", "tensor"])
def test_weights_that_are_no_dict_are_refused(content: object, tmp_path: Path, tiny_model: OPTForCausalLM) -> None:
    checkpoint = save_checkpoint(tiny_model, tmp_path / "checkpoint", "bin")
    torch.save(content, checkpoint / "pytorch_model.bin")
    assert_refused(checkpoint, tmp_path / "store", "expected a dict of tensors")


def test_a_number_in_place_of_a_tensor_is_named(tiny_model: OPTForCausalLM, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tiny_model, tmp_path / "checkpoint", "bin")
    torch.save(torch.load(checkpoint / "pytorch_model.bin") | {FC1: 5}, checkpoint / "pytorch_model.bin")
    assert_refused(checkpoint, tmp_path / "store", f"has no tensor {FC1}: is the checkpoint complete")


def test_a_tensor_that_memory_has_no_room_for_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory:\nyou tried to allocate 8 bytes")

    monkeypatch.setattr(Tensor, "clone", fails)
    assert_refused(checkpoint, tmp_path / "store", "weight is too large for this machine's memory$")


class Malicious:
    """An object whose unpickling creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.target), "w")


def save_plain_pickle(content: object, path: Path) -> None:
    """Write a pickle without the archive that torch.save puts around it."""
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("save", [torch.save, save_plain_pickle])
def test_code_in_a_pickle_is_not_run(
    save: Callable[[object, Path], None], tiny_model: OPTForCausalLM, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    pickle.loads(pickle.dumps(Malicious(target))).close()
    assert target.exists(), "the trap must work"
    target.unlink()
    checkpoint = save_checkpoint(tiny_model, tmp_path / "checkpoint", "bin")
    save({FC1: Malicious(target)}, checkpoint / "pytorch_model.bin")
    assert_refused(checkpoint, tmp_path / "store", "cannot be read as weights")
    assert not target.exists()


# Memory


def run_python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter that finds this flashlite."""
    environment = os.environ | {"PYTHONPATH": str(Path(flashlite.__file__).parents[1])}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


WRITE_OPT_1_3B = """
import json, sys, torch
from pathlib import Path
from transformers import OPTConfig, OPTForCausalLM

config = OPTConfig(hidden_size=2048, word_embed_proj_dim=2048, num_hidden_layers=24, ffn_dim=8192,
                   num_attention_heads=32, vocab_size=50272, max_position_embeddings=2048)
with torch.device("meta"):
    shapes = OPTForCausalLM(config).model.state_dict()
Path(sys.argv[1], "config.json").write_text(json.dumps(config.to_dict()))
state = {name: torch.zeros(t.shape, dtype=torch.float16) for name, t in shapes.items()}
torch.save(state, Path(sys.argv[1], "pytorch_model.bin"))
"""
PACK = """
import sys
from flashlite.storage.pack import pack

pack(sys.argv[1], sys.argv[2], "fp16", ("bundled",))
"""
# A process inherits the peak of the one that started it, and pytest's is large: so a small one starts it.
MEASURE = """
import resource, subprocess, sys

subprocess.run([sys.executable, "-c", *sys.argv[1:]], check=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(peak if sys.platform == "darwin" else peak * 1024)
"""


@pytest.mark.slow
def test_packing_opt_1_3b_needs_little_memory(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 8e9:
        pytest.skip(f"{tmp_path} has less than the 8 GB free that a checkpoint of OPT-1.3B and its store need")
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        assert run_python(WRITE_OPT_1_3B, folder).returncode == 0
        assert Path(folder, "pytorch_model.bin").stat().st_size > 2.6e9
        measured = run_python(MEASURE, PACK, folder, Path(folder, "store"))
        assert measured.returncode == 0, measured.stderr
        assert Store(Path(folder, "store")).weight_bytes > 2.6e9
    peak = int(measured.stdout.split()[-1])
    assert peak < 1.5e9, f"packing took {peak / 1e6:.0f} MB"
