"""The streaming model against the dense one: each way of calling it, what it counts, what it holds, what it refuses."""

from __future__ import annotations

import copy
import gc
import json
import os
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, make_model, save_checkpoint
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

import flashlite
from flashlite.cli.checks import check_stages
from flashlite.drive.backends import Serial
from flashlite.drive.direct import direct_alignment
from flashlite.engine.ffn import FlashFFN
from flashlite.engine.pool import Pool
from flashlite.engine.stages import LADDER, NAMES
from flashlite.engine.timing import CallCost
from flashlite.errors import BudgetError, CheckpointError, FlashliteError, PredictorError, StoreError
from flashlite.storage.store import MANIFEST, PREDICTOR, Store

AMPLE = "2MB"  # every neuron of the tiny model finds room, at every stage
GREEDY = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "repetition_penalty": 2.0}  # no token twice
MAX_POSITIONS = TINY["max_position_embeddings"]


def load(store: Store | Path, **options: Any) -> OPTForCausalLM:
    return flashlite.load(store, **{"dram_budget": AMPLE, "predictor": "oracle"} | options)


def smallest_budget(store: Store, **options: Any) -> int:
    """What the message about too small a budget says would do."""
    with pytest.raises(BudgetError, match="smallest that works") as caught:
        load(store, **options | {"dram_budget": 1})
    return int(re.search(r"works is (\d+) bytes", str(caught.value))[1])


def random_ids(length: int, sequences: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(3, TINY["vocab_size"], (sequences, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def forced(model: OPTForCausalLM, ids: Tensor, prompt: int) -> Tensor:
    """Logits at all positions of `ids`, of which the first `prompt` enter at once and the others one by one."""
    out = model(ids[:, :prompt])
    logits = [out.logits]
    for i in range(prompt, ids.shape[1]):
        out = model(ids[:, i : i + 1], past_key_values=out.past_key_values)
        logits.append(out.logits)
    return torch.cat(logits, 1)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def assert_generates_alike(model: OPTForCausalLM, dense: OPTForCausalLM, **arguments: Any) -> None:
    """Same tokens, and the same logits behind them, for the same arguments of generate()."""
    answers = []
    for m in (model, dense):
        torch.manual_seed(1)
        answers.append(m.generate(**GREEDY | arguments, output_logits=True, return_dict_in_generate=True))
    assert answers[0].sequences.tolist() == answers[1].sequences.tolist()
    assert len(answers[0].logits) == GREEDY["max_new_tokens"]
    assert_close(torch.stack(answers[0].logits), torch.stack(answers[1].logits))


def active_sets(dense: OPTForCausalLM, ids: Tensor) -> list[Tensor]:
    """Which neurons fire in the dense model, by layer: [sequences, tokens, ffn] bool."""
    found: list[Tensor] = []
    layers = dense.model.decoder.layers
    hooks = [layer.fc1.register_forward_hook(lambda _m, _a, out: found.append(out > 0)) for layer in layers]
    with torch.no_grad():
        dense(ids)
    for hook in hooks:
        hook.remove()
    return [mask.view(*ids.shape, -1) for mask in found]


def decoding_costs(store: Store, stage: int, **options: Any) -> tuple[OPTForCausalLM, list[CallCost]]:
    """A model that has decoded the same random tokens at whichever stage, and what each of them cost."""
    model = load(store, stage=stage, **options)
    forced(model, random_ids(16), 6)
    return model, model.flash.calls[1:]


@pytest.fixture
def model(tiny_store: Store) -> OPTForCausalLM:
    return load(tiny_store)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One word for each of the tiny model's tokens."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(TINY["vocab_size"])}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w2", eos_token="w2", pad_token="w1")


@pytest.fixture
def copied_store(tiny_store: Store, tmp_path: Path) -> Path:
    """A store that a test may change."""
    return Path(shutil.copytree(tiny_store.path, tmp_path / "copied"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# Same tokens and logits, however it is called


@pytest.mark.parametrize("stage", range(len(LADDER)))
def test_every_stage_is_exact(tiny_store: Store, tiny_model: OPTForCausalLM, stage: int) -> None:
    model = load(tiny_store, stage=stage)
    assert_generates_alike(model, tiny_model, inputs=random_ids(12))
    ids = random_ids(20, seed=1)
    assert_close(forced(model, ids, 8), tiny_model(ids).logits)


def test_stages_by_name_and_number(tiny_store: Store) -> None:
    for number, name in enumerate(NAMES):
        assert load(tiny_store, stage=name).flash.stage == load(tiny_store, stage=number).flash.stage == LADDER[name]
    assert load(tiny_store).flash.stage == LADDER["pool"]


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True},
        {"do_sample": True, "top_k": 20, "temperature": 1.5, "num_return_sequences": 3},
        {"num_beams": 4},
        {"num_beams": 4, "num_return_sequences": 3},
        {"num_beams": 3, "do_sample": True},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 4},
    ],
    ids=lambda options: "-".join(options),
)
def test_generate_options(model: OPTForCausalLM, tiny_model: OPTForCausalLM, options: dict[str, Any]) -> None:
    assert_generates_alike(model, tiny_model, inputs=random_ids(10), **options)


@pytest.mark.parametrize("stage", [0, 3, 5, 6])
@pytest.mark.parametrize("options", [{}, {"num_beams": 4}], ids=["greedy", "beams"])
def test_left_padded_batch(
    tiny_store: Store, tiny_model: OPTForCausalLM, stage: int, options: dict[str, Any]
) -> None:  # fmt: skip
    ids = random_ids(12, sequences=3)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 5, 11)):
        ids[row, :padding], mask[row, :padding] = TINY["pad_token_id"], 0
    assert_generates_alike(load(tiny_store, stage=stage), tiny_model, inputs=ids, attention_mask=mask, **options)


def test_batch_is_as_if_alone(model: OPTForCausalLM) -> None:
    batch = random_ids(9, sequences=3)
    alone = [model.generate(ids[None], **GREEDY)[0].tolist() for ids in batch]
    assert model.generate(batch, **GREEDY).tolist() == alone


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, MAX_POSITIONS])
def test_prompts_of_any_length(model: OPTForCausalLM, tiny_model: OPTForCausalLM, length: int) -> None:
    """Up to the window's five tokens they enter like a decoded one, above as a prompt."""
    ids = random_ids(length)
    assert_close(model(ids).logits, tiny_model(ids).logits)
    assert model.flash.last_token.tokens == length


@pytest.mark.parametrize("length", [1, MAX_POSITIONS - GREEDY["max_new_tokens"]])
def test_generate_from_shortest_and_longest_prompt(
    model: OPTForCausalLM, tiny_model: OPTForCausalLM, length: int
) -> None:
    assert_generates_alike(model, tiny_model, inputs=random_ids(length))


@pytest.mark.parametrize("stage", [0, 5, 6])
def test_prompts_in_a_row_do_not_disturb_each_other(tiny_store: Store, tiny_model: OPTForCausalLM, stage: int) -> None:
    model = load(tiny_store, stage=stage)
    for seed, (length, prompt) in enumerate([(14, 10), (6, 1), (12, 3), (20, 18)]):
        ids = random_ids(length, sequences=1 + seed % 2, seed=seed)
        assert_close(forced(model, ids, prompt), tiny_model(ids).logits)


def test_turns_of_a_conversation(model: OPTForCausalLM, tiny_model: OPTForCausalLM) -> None:
    """A second prompt after the first one's tokens, with the cache kept."""
    ids = random_ids(24)
    with torch.no_grad():
        first = model(ids[:, :9])
        second = model(ids[:, 9:], past_key_values=first.past_key_values)
    assert_close(second.logits, tiny_model(ids).logits[:, 9:])


def test_text_streamer(
    model: OPTForCausalLM, tiny_model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture
) -> None:
    ids = random_ids(10)
    model.generate(ids, streamer=TextStreamer(tokenizer, skip_prompt=True), **GREEDY)
    assert capsys.readouterr().out.split() == tokenizer.decode(tiny_model.generate(ids, **GREEDY)[0, 10:]).split()


def test_text_iterator_streamer(
    model: OPTForCausalLM, tiny_model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = random_ids(10)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = Thread(target=model.generate, args=(ids,), kwargs={"streamer": streamer, **GREEDY})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text.split() == tokenizer.decode(tiny_model.generate(ids, **GREEDY)[0, 10:]).split()


def test_pipeline(model: OPTForCausalLM, tiny_model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = ["w5 w17 w99 w4", "w64"]
    answers = [pipeline("text-generation", m, tokenizer=tokenizer)(prompts, **GREEDY) for m in (model, tiny_model)]
    assert answers[0] == answers[1]
    for prompt, answer in zip(prompts, answers[0], strict=True):
        assert len(answer[0]["generated_text"].removeprefix(prompt).split()) == GREEDY["max_new_tokens"]


@pytest.mark.parametrize("candidates", [3, 10])
def test_prompt_lookup_equals_greedy(model: OPTForCausalLM, tiny_model: OPTForCausalLM, candidates: int) -> None:
    """Candidates are checked in one call, which is within the window or above it."""
    ids = random_ids(6).repeat(1, 3)
    options = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
    found = model.generate(ids, prompt_lookup_num_tokens=candidates, **options)
    assert found.tolist() == tiny_model.generate(ids, **options).tolist()
    assert max(call.tokens for call in model.flash.calls[1:]) > 1  # or nothing was looked up


def test_assisted_decoding_equals_greedy(model: OPTForCausalLM, tiny_model: OPTForCausalLM) -> None:
    ids, options = random_ids(10), {"do_sample": False, "max_new_tokens": 12}
    found = model.generate(ids, assistant_model=tiny_model, **options)
    assert found.tolist() == tiny_model.generate(ids, **options).tolist()
    assert len(model.flash.calls) < 12  # the assistant is the same model, so its tokens are taken many at a time


def test_inputs_embeds(model: OPTForCausalLM, tiny_model: OPTForCausalLM) -> None:
    embeds = tiny_model.get_input_embeddings()(random_ids(10)).detach()
    assert_close(model(inputs_embeds=embeds).logits, tiny_model(inputs_embeds=embeds).logits)
    assert_generates_alike(model, tiny_model, inputs_embeds=embeds, repetition_penalty=1.0)


def test_embeds_behind_a_positional_mask(model: OPTForCausalLM, tiny_model: OPTForCausalLM) -> None:
    """The mask is as long as all tokens so far, the call is not."""
    ids = random_ids(10)
    embeds = tiny_model.get_input_embeddings()(ids).detach()
    cache = model(ids[:, :9]).past_key_values
    found = model(None, torch.ones_like(ids), cache, inputs_embeds=embeds[:, 9:])
    assert_close(found.logits, tiny_model(ids).logits[:, 9:])
    assert model.flash.last_token.tokens == 1


def test_ids_without_batch_dimension(model: OPTForCausalLM, tiny_model: OPTForCausalLM) -> None:
    ids = random_ids(10)[0]
    assert_close(model(ids).logits, tiny_model(ids).logits)


def test_decoder_without_its_head(model: OPTForCausalLM, tiny_model: OPTForCausalLM) -> None:
    """As for embeddings of text: the calls before were of other sizes."""
    model(random_ids(10, sequences=2))
    ids = random_ids(7)
    assert_close(model.model(ids).last_hidden_state, tiny_model.model(ids).last_hidden_state)


def test_hidden_states(model: OPTForCausalLM, tiny_model: OPTForCausalLM) -> None:
    ids = random_ids(10)
    found, expected = (m(ids, output_hidden_states=True).hidden_states for m in (model, tiny_model))
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("stage", [0, 1, 5, 6])
@pytest.mark.parametrize(
    "variant",
    [
        {"do_layer_norm_before": False, "word_embed_proj_dim": 32},  # as OPT-350M
        {"enable_bias": False},
        {"layer_norm_elementwise_affine": False},
    ],
    ids=["350m", "no-bias", "no-affine"],
)
def test_variants_of_the_architecture(tmp_path: Path, stage: int, variant: dict[str, Any]) -> None:
    torch.manual_seed(0)
    dense = OPTForCausalLM(OPTConfig(**TINY | variant)).eval()
    store = flashlite.pack(save_checkpoint(dense, tmp_path / "checkpoint"), tmp_path / "store")
    ids = random_ids(14)
    assert_close(forced(load(store, stage=stage), ids, 8), dense(ids).logits)


def test_a_head_of_its_own_is_refused_or_used(tmp_path: Path) -> None:
    """The store has no place for a head apart from the embeddings, and dropping it would give other tokens."""
    dense = make_model(tie_word_embeddings=False)
    folder = save_checkpoint(dense, tmp_path / "checkpoint")
    save_file({n: t.contiguous() for n, t in dense.state_dict().items()}, folder / "model.safetensors")
    ids = random_ids(6)
    try:
        logits = load(flashlite.pack(folder, tmp_path / "store"))(ids).logits
    except FlashliteError:
        return
    assert_close(logits, dense(ids).logits)


@pytest.mark.parametrize("stage", [0, 5, 6])
def test_bf16_store(home: Path, tiny_checkpoint: Path, tiny_model: OPTForCausalLM, stage: int) -> None:
    model = load(tiny_checkpoint, dtype="bf16", stage=stage)
    dense, ids = copy.deepcopy(tiny_model).bfloat16(), random_ids(14)
    assert model.dtype == torch.bfloat16
    found, rounded, exact = forced(model, ids, 8).float(), dense(ids).logits.float(), tiny_model(ids).logits
    assert (found - exact).abs().mean() < 1.5 * (rounded - exact).abs().mean()  # no worse than dense in bf16


# What model.flash tells


def test_last_token_before_any_call(model: OPTForCausalLM) -> None:
    with pytest.raises(FlashliteError, match="not been called"):
        _ = model.flash.last_token
    assert model.flash.calls == []


@pytest.mark.parametrize("stage", range(len(LADDER)))
def test_cost_of_a_call_adds_up(tiny_store: Store, stage: int) -> None:
    model = load(tiny_store, stage=stage)
    for ids in (random_ids(9), random_ids(1), random_ids(1, sequences=3)):
        before = model.flash.counters
        model(ids)
        cost, read = model.flash.last_token, model.flash.counters - before
        assert (cost.tokens, cost.records, cost.reads, cost.bytes) == (
            ids.shape[1],
            read.records,
            read.reads,
            read.bytes,
        )
        assert cost.io_ms + cost.memory_ms + cost.compute_ms == pytest.approx(cost.total_ms)
        assert 0 < cost.product_ms <= cost.compute_ms
        assert cost.io_ms > 0
        assert (cost.memory_ms > 0) == model.flash.stage.predictor
    assert len(model.flash.calls) == 3


@pytest.mark.parametrize("stage", [0, 2, 3, 5, 6])
def test_counters_repeat(tiny_store: Store, stage: int) -> None:
    runs = [decoding_costs(tiny_store, stage)[0].flash for _ in range(2)]
    first, second = ([(call.records, call.reads, call.bytes) for call in run.calls] for run in runs)
    assert first == second
    assert runs[0].rows_moved == runs[1].rows_moved


def test_bytes_fall_from_stage_to_stage(tiny_store: Store) -> None:
    """Per token, stage 0 reads everything and 1 only FFNs; 2 a part of the neurons of 1, by the same reads' grid; 3 a
    part of those of 2, namely none that the window has; 4 the same neurons as 3, but a neuron's halves apart touch at
    least as many of the drive's blocks as together; 5 the same as 4, because both have room for all neurons."""
    runs = [decoding_costs(tiny_store, stage) for stage in range(6)]
    naive, resident, predictor, window, bundle, pool = (sum(cost.bytes for cost in costs) for _, costs in runs)
    assert naive > resident > predictor > window >= bundle == pool > 0
    assert all(set(model.flash.budget.layer_rows) == {tiny_store.shape.neurons} for model, _ in runs[2:])
    for (_, more), (_, fewer) in pairwise(runs):  # no token costs more than at the stage before
        assert all(a.bytes >= b.bytes for a, b in zip(more, fewer, strict=True))


def test_resident_stage_reads_exactly_the_ffns(tiny_store: Store) -> None:
    """And the stage before it all resident weights besides. A half of a neuron may need a whole block of the drive."""
    _, naive = decoding_costs(tiny_store, 0)
    _, resident = decoding_costs(tiny_store, 1)
    assert {cost.records for cost in resident} == {2 * tiny_store.layers * tiny_store.shape.neurons}
    weights = sum(group.end - group.begin for group in tiny_store.groups)
    assert all(a.bytes - b.bytes >= weights for a, b in zip(naive, resident, strict=True))


def test_bundling_halves_the_reads(tmp_path: Path) -> None:
    """With halves that fill the drive's blocks, both layouts read the same bytes. A neuron's two halves are far apart,
    so split reads are two of each run of neighbours that a bundled read is one of, whether neighbours merge or not (no
    run here is as long as the largest read)."""
    width = max(64, direct_alignment(tmp_path) // 4)
    dense = make_model(hidden_size=width, word_embed_proj_dim=width, num_hidden_layers=1)
    store = flashlite.pack(save_checkpoint(dense, tmp_path / "checkpoint"), tmp_path / "store")
    assert store.shape.record_bytes == 2 * store.shape.half_bytes
    (_, window), (_, bundle) = (decoding_costs(store, stage, dram_budget="300%") for stage in (3, 4))
    assert [cost.bytes for cost in window] == [cost.bytes for cost in bundle]
    assert [cost.records for cost in window] == [2 * cost.records for cost in bundle]
    assert [cost.reads for cost in window] == [2 * cost.reads for cost in bundle]
    assert sum(cost.reads for cost in bundle) > 0


def test_prompt_reads_each_neuron_once_those_that_it_keeps_too(tiny_store: Store, model: OPTForCausalLM) -> None:
    model(random_ids(30))
    assert sum(model.flash.rows_held) > 0
    assert model.flash.last_token.records == tiny_store.layers * tiny_store.shape.neurons


def test_pool_moves_fewer_rows_than_rebuilding(tiny_store: Store) -> None:
    rebuilt, pool = (decoding_costs(tiny_store, stage)[0].flash for stage in (4, 5))
    assert 0 < pool.rows_moved < rebuilt.rows_moved / 10
    assert rebuilt.rows_held == pool.rows_held
    assert decoding_costs(tiny_store, 1)[0].flash.rows_moved == 0


# What it holds in DRAM


def test_ffn_weights_never_exist_as_a_whole(model: OPTForCausalLM, tiny_store: Store) -> None:
    forced(model, random_ids(12), 8)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers()) | model.state_dict()
    assert not [name for name in tensors if name.endswith(("fc1.weight", "fc2.weight"))]
    biases = sum(ffn.streamed.up_bias.nbytes + ffn.streamed.down_bias.nbytes for ffn in model.flash.ffns)
    parameters = sum(p.nbytes for p in model.parameters())
    assert parameters + biases == sum(group.end - group.begin for group in tiny_store.groups)
    assert parameters + biases == tiny_store.weight_bytes - tiny_store.layers * tiny_store.shape.layer_bytes
    assert parameters + biases <= model.flash.resident.nbytes <= model.flash.budget.resident


@pytest.fixture(scope="module")
def deep_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """As many layers as OPT-1.3B."""
    folder = tmp_path_factory.mktemp("deep")
    return flashlite.pack(save_checkpoint(make_model(num_hidden_layers=24), folder / "checkpoint"), folder / "store")


@pytest.mark.parametrize("stage", [0, 4, 5, 6])
@pytest.mark.parametrize("spare", [0, 5_000, 50_000, 500_000])
@pytest.mark.parametrize("kind", ["tiny_store", "deep_store"])
def test_parts_stay_within_the_budget(kind: str, spare: int, stage: int, request: pytest.FixtureRequest) -> None:
    """spare: bytes above the smallest budget."""
    store = request.getfixturevalue(kind)
    total = smallest_budget(store, stage=stage) + spare
    flash = load(store, stage=stage, dram_budget=total).flash
    budget, copies = flash.budget, flash.stage.memory.spare if flash.stage.predictor else 0
    rows = sum(budget.layer_rows) + copies * max(budget.layer_rows, default=0)
    used = budget.resident + budget.predictors + budget.buffers + rows * store.shape.record_bytes
    assert budget.total == total
    assert used <= total
    assert budget.buffers == 2 * flash.stream.rows * store.shape.record_bytes
    assert flash.resident.nbytes <= budget.resident
    capacities = [ffn.memory.capacity for ffn in flash.ffns if isinstance(ffn, FlashFFN)]
    assert capacities == list(budget.layer_rows)


def test_trained_predictors_count_to_the_budget(tiny_store: Store) -> None:
    flash = load(tiny_store, predictor="trained", dram_budget="100%").flash
    assert flash.budget.predictors == sum(ffn.predictor.nbytes for ffn in flash.ffns) > 0
    rows = load(tiny_store, predictor="oracle", dram_budget="100%").flash.budget.layer_rows
    assert sum(flash.budget.layer_rows) < sum(rows)


def test_trained_predictor_of_full_rank_is_nearly_exact(tiny_store: Store, tiny_model: OPTForCausalLM) -> None:
    ids = random_ids(20)
    found, expected = forced(load(tiny_store, predictor="trained"), ids, 8), tiny_model(ids).logits
    assert (found.argmax(-1) == expected.argmax(-1)).all()
    assert (found - expected).abs().max() < 0.1 * expected.std()


@pytest.mark.parametrize("stage", ["window", "bundle", "pool", "overlap"])
@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize(("sequences", "prompt"), [(1, 12), (2, 12), (1, 3)])
def test_window_after_a_prompt(
    tiny_store: Store, tiny_model: OPTForCausalLM, stage: str, k: int, sequences: int, prompt: int
) -> None:
    """It holds what the last k tokens of all sequences use, in DRAM as in the books, and so on while decoding."""
    model = load(tiny_store, stage=stage, window=k)
    ids = random_ids(prompt + 2, sequences)
    active = active_sets(tiny_model, ids)
    for end in (prompt, prompt + 2):
        if end == prompt:
            cache = model(ids[:, :prompt]).past_key_values
        else:
            for i in range(prompt, end):
                model(ids[:, i : i + 1], past_key_values=cache)
        # A prompt that is no longer than the window enters as one token
        begin = 0 if prompt <= k else end - k
        for ffn, mask in zip(model.flash.ffns, active, strict=True):
            expected = mask[:, begin:end].flatten(0, 1).any(0).nonzero()[:, 0].tolist()
            assert ffn.window.held.tolist() == expected
            assert np.sort(ffn.memory.neurons()).tolist() == expected


def test_rows_in_dram_are_the_neurons_on_flash(tiny_store: Store, tiny_model: OPTForCausalLM) -> None:
    model = load(tiny_store, dram_budget=smallest_budget(tiny_store) + 50_000)
    forced(model, random_ids(40), 8)
    for ffn, layer in zip(model.flash.ffns, tiny_model.model.decoder.layers, strict=True):
        memory: Pool = ffn.memory
        neurons = torch.from_numpy(memory.neurons())
        assert 0 < len(neurons) <= memory.capacity < tiny_store.shape.neurons
        rows = torch.cat([layer.fc1.weight[neurons], layer.fc2.weight.T[neurons]], 1)
        assert torch.equal(memory._matrix[: memory.num_used, : rows.shape[1]], rows)


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("share", [0, 0.02, 0.05, 0.1, 0.3, 1])
def test_tight_budgets_are_exact(tiny_store: Store, tiny_model: OPTForCausalLM, share: float, k: int) -> None:
    """share: where the budget lies between the smallest and twice the model."""
    smallest = smallest_budget(tiny_store)
    budget = int(smallest + share * (2 * tiny_store.weight_bytes - smallest))
    model = load(tiny_store, dram_budget=budget, window=k)
    assert_generates_alike(model, tiny_model, inputs=random_ids(10, sequences=2))
    assert all(held <= rows for held, rows in zip(model.flash.rows_held, model.flash.budget.layer_rows, strict=True))


@pytest.mark.parametrize("stage", range(len(LADDER)))
def test_smallest_budget_named_is_the_smallest_and_works(
    tiny_store: Store, tiny_model: OPTForCausalLM, stage: int
) -> None:
    smallest = smallest_budget(tiny_store, stage=stage)
    with pytest.raises(BudgetError, match=str(smallest)):
        load(tiny_store, stage=stage, dram_budget=smallest - 1)
    model = load(tiny_store, stage=stage, dram_budget=smallest)
    ids = random_ids(14)
    assert_close(forced(model, ids, 8), tiny_model(ids).logits)
    assert model.flash.rows_held == list(model.flash.budget.layer_rows)  # full: some neurons found no room


def test_interrupted_prompt_leaves_no_phantom_neurons(model: OPTForCausalLM, tiny_model: OPTForCausalLM) -> None:
    """As by Ctrl-C in a notebook: the next call is exact again."""

    class Interrupted:
        nbytes = 0

        def __init__(self) -> None:
            self.left = 2

        def mask(self, x: Tensor) -> Tensor:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            return x.new_ones((len(x), TINY["ffn_dim"]), dtype=torch.bool)

    ffn = model.flash.ffns[1]
    ffn.predictor, oracle = Interrupted(), ffn.predictor
    with pytest.raises(KeyboardInterrupt):
        model(random_ids(10))
    ffn.predictor = oracle
    ids = random_ids(4)
    assert_close(forced(model, ids, 1), tiny_model(ids).logits)


def test_failed_read_leaves_no_phantom_neurons(
    model: OPTForCausalLM, tiny_model: OPTForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError("the drive is gone")

    ids = random_ids(10)
    model(ids[:, :8])
    with monkeypatch.context() as patch:
        patch.setattr(model.flash.file.file, "submit", fails)
        with pytest.raises(OSError, match="drive is gone"):
            model(ids)
    assert_close(forced(model, ids, 1), tiny_model(ids).logits)


def test_a_prompt_that_breaks_off_leaves_no_read_under_way(
    model: OPTForCausalLM, tiny_model: OPTForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next part is being read when it breaks off, into buffers that the next call reads into as well."""
    ids, stream = random_ids(10), model.flash.stream

    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stream, "_multiply", fails)
        with pytest.raises(KeyboardInterrupt):
            model(ids)
    left = stream._under_way
    assert_close(model(ids).logits, tiny_model(ids).logits)
    assert left
    assert all(ticket._batch is None for ticket in left)


def test_files_are_closed_with_the_model(tiny_store: Store) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system doesn't list open files")
    load(tiny_store)(random_ids(8))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        load(tiny_store)(random_ids(8))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


# What it refuses


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"stage": "fast"}, FlashliteError, "unknown stage 'fast'.*naive, resident.*pool"),
        ({"stage": 7}, FlashliteError, "unknown stage 7: choose 0 to 6"),
        ({"stage": -1}, FlashliteError, "unknown stage -1"),
        ({"window": 0}, FlashliteError, "window of 0 tokens is not understood: write a whole number from 1"),
        ({"predictor": "orcale"}, FlashliteError, "unknown predictor 'orcale'.*trained.*oracle"),
        ({"predictor": []}, FlashliteError, "0 predictors.*3 layers"),
        ({"dram_budget": "lots"}, BudgetError, "'lots' is not understood"),
        ({"dram_budget": "1%"}, BudgetError, "smallest that works"),
    ],
    ids=str,
)
def test_wrong_arguments(tiny_store: Store, options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        load(tiny_store, **options)
    assert "\n" not in str(caught.value)


def test_one_predictor_too_many(tiny_store: Store) -> None:
    predictors = [ffn.predictor for ffn in load(tiny_store).flash.ffns]
    with pytest.raises(FlashliteError, match="4 predictors were given for 3 layers"):
        load(tiny_store, predictor=[*predictors, predictors[0]])


def test_predictors_of_ones_own(tiny_store: Store, tiny_model: OPTForCausalLM) -> None:
    predictors = [ffn.predictor for ffn in load(tiny_store).flash.ffns]
    model = load(tiny_store, predictor=predictors)
    assert [ffn.predictor for ffn in model.flash.ffns] == predictors
    ids = random_ids(12)
    assert_close(forced(model, ids, 8), tiny_model(ids).logits)


def test_store_without_predictor(copied_store: Path, tiny_model: OPTForCausalLM) -> None:
    (copied_store / PREDICTOR).unlink()
    words = f"run `flashlite train-predictor {re.escape(str(copied_store))}.*predictor='oracle'"
    with pytest.raises(PredictorError, match=words):
        load(copied_store, predictor="trained")
    ids = random_ids(4)
    assert_close(load(copied_store, stage=1, predictor="trained")(ids).logits, tiny_model(ids).logits)


def test_folders_that_are_no_model(home: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a local folder"):
        load(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="neither a store nor a checkpoint"):
        load(tmp_path / "empty")
    assert not home.exists()


@pytest.mark.parametrize("opened", [False, True], ids=["path", "store"])
def test_dtype_other_than_the_stores(tiny_store: Store, opened: bool) -> None:
    with pytest.raises(StoreError, match="packed as fp32, not bf16"):
        load(tiny_store if opened else tiny_store.path, dtype="bf16")


def test_store_that_lacks_a_layout(tiny_checkpoint: Path, tmp_path: Path) -> None:
    store = flashlite.pack(tiny_checkpoint, tmp_path / "store", layouts=("bundled",))
    with pytest.raises(StoreError, match="no split layout"):
        load(store, stage="window")
    with pytest.raises(StoreError, match="no split layout"):  # before anything is measured
        check_stages(store, [5, 3], "90%", "oracle")


def test_call_without_input(model: OPTForCausalLM) -> None:
    with pytest.raises((FlashliteError, ValueError), match="input_ids or inputs_embeds"):
        model()


def test_an_open_file_cannot_be_copied(tiny_store: Store) -> None:
    """As a copy of the model would do. Two owners of a descriptor close it twice, the second time somebody else's."""
    file = tiny_store.open_resident(Serial())  # a shared backend could not be copied without harm to other tests
    with pytest.raises((FlashliteError, TypeError)):
        copy.deepcopy(file).fd = -1  # closes nothing if it should succeed


def test_saving_a_checkpoint_without_its_ffns_is_refused(model: OPTForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(FlashliteError):
        model.save_pretrained(tmp_path / "saved")


# Where it comes from, and what it looks like


@pytest.fixture
def watched_home(home: Path) -> Iterator[Path]:
    yield home
    leftovers = [path for path in (home / "stores").iterdir() if path.name.startswith(".")]
    assert leftovers == []


def test_checkpoint_is_packed_once(watched_home: Path, tiny_checkpoint: Path, tiny_model: OPTForCausalLM) -> None:
    ids = random_ids(8)
    assert_close(load(tiny_checkpoint)(ids).logits, tiny_model(ids).logits)
    (manifest,) = watched_home.glob(f"stores/*-fp32/{MANIFEST}")
    packed = manifest.stat()
    model = load(tiny_checkpoint)
    assert (manifest.stat().st_mtime_ns, manifest.stat().st_ino) == (packed.st_mtime_ns, packed.st_ino)
    assert Path(model.name_or_path) == manifest.parent
    assert load(str(tiny_checkpoint), dtype="fp32").name_or_path == model.name_or_path


def test_each_dtype_has_a_store(watched_home: Path, tiny_checkpoint: Path) -> None:
    models = [load(tiny_checkpoint, dtype=dtype) for dtype in (None, "bf16", "fp16")]
    assert [m.dtype for m in models] == [torch.float32, torch.bfloat16, torch.float16]
    assert len(list(watched_home.glob(f"stores/*/{MANIFEST}"))) == 3


def test_checkpoints_of_the_same_relative_name(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = random_ids(8)
    for seed in (1, 2):
        dense = make_model(seed=seed)
        (tmp_path / f"project-{seed}").mkdir()
        monkeypatch.chdir(tmp_path / f"project-{seed}")
        save_checkpoint(dense, Path("tiny"))
        assert_close(load(Path("tiny"))(ids).logits, dense(ids).logits)


def test_generation_config_of_the_store(copied_store: Path, model: OPTForCausalLM) -> None:
    (copied_store / "generation_config.json").write_text(json.dumps({"max_new_tokens": 3, "eos_token_id": 127}))
    other = load(copied_store)
    assert (other.generation_config.max_new_tokens, other.generation_config.eos_token_id) == (3, 127)
    assert other.generate(random_ids(5), do_sample=False).shape[1] <= 8
    assert (model.generation_config.max_new_tokens, model.generation_config.eos_token_id) == (None, 2)


@pytest.mark.parametrize("stage", range(len(LADDER)))
def test_printing(tiny_store: Store, stage: int) -> None:
    text = repr(load(tiny_store, stage=stage))
    assert text.startswith("OPTForCausalLM")
    assert (LADDER[NAMES[stage]].ffn.__name__ if LADDER[NAMES[stage]].predictor else "StreamedFFN") in text


def test_nothing_to_train_is_left(model: OPTForCausalLM) -> None:
    assert not model.training
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
