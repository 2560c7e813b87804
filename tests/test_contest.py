"""The contest: rules that no entry gets around, counts that are the engine's, scores from the window to Belady."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, call, smallest_budget
from transformers import OPTForCausalLM

import flashlite
from flashlite.bench.decoding import greedy
from flashlite.bench.replay import replay_belady, replay_lru
from flashlite.contest import layout, record
from flashlite.contest.baselines import LRU, Bounded, baselines
from flashlite.contest.judge import ENTRY, LayoutContest, PolicyContest
from flashlite.contest.layout import READ, Cost, cost_of
from flashlite.contest.leaderboard import as_csv, play_class
from flashlite.contest.referee import play, score
from flashlite.contest.traces import PUBLIC, Trace, past, read_trace, trace_files
from flashlite.course.manifest import Course, read_course
from flashlite.course.plug import POLICY, choose, load, whole_file
from flashlite.course.report.known import contests
from flashlite.engine.policies import entry
from flashlite.engine.policies.kept import KeptByPolicy
from flashlite.engine.policies.rules import Change, Foul, Held, Token, rounded
from flashlite.errors import FlashliteError
from flashlite.storage.store import Store

SHIPPED = trace_files(ROOT / PUBLIC)
NEURONS = 24


def trace_of(needed: list[list[int]], neurons: int, capacity: int) -> Trace:
    """A trace of one layer whose tokens need these neurons."""
    scores = np.full((1, len(needed), neurons), -9, np.int8)
    for t, token in enumerate(needed):
        scores[0, t, token] = 5
    return Trace(scores, (capacity,), tuple(range(len(needed))), 4096, "made by hand", "text", 0)


def random_trace(seed: int, tokens: int = 40, layers: int = 2, capacity: int = 10) -> Trace:
    """Scores that change slowly, as in a text, so that there is something to keep. No token needs more than fits."""
    generator = np.random.default_rng(seed)
    values = np.cumsum(generator.normal(0, 8, (layers, tokens, NEURONS)), 1)
    scores = np.stack([[rounded(token - np.sort(token)[-7]) for token in layer] for layer in values])
    return Trace(scores, (capacity,) * layers, tuple(range(tokens)), 4096, "random", "text", seed)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of two random traces."""
    folder = tmp_path_factory.mktemp("traces")
    for seed in (1, 2):
        random_trace(seed).save(folder / f"{seed}.safetensors")
    return trace_files(folder)


# Counts


def test_the_baselines_load_what_they_load_by_hand() -> None:
    """Room for 3 of 6 neurons."""
    trace = trace_of([[0, 1], [2], [0, 3], [1], [0, 2]], 6, 3)
    loads = {name: play(trace, make)[0].tolist() for name, make in baselines(trace).items()}
    assert loads["window"] == [2, 1, 1, 1, 1]  # holds 01 | 012 | 023 | 013 | 012: the oldest token leaves
    assert loads["LRU"] == [2, 1, 1, 1, 1]  # holds 01 | 012 | 023, because 1 is older than 2 | 013 | 012
    # Belady holds 01 | 012 | 013, because 2 is needed after 1 | 013 | 012
    assert loads["Belady"] == [2, 1, 1, 0, 1]


@pytest.mark.parametrize("seed", range(4))
def test_no_policy_reads_less_than_belady_and_replays_count_the_same(seed: int) -> None:
    trace = random_trace(seed)
    loads = {name: play(trace, make) for name, make in baselines(trace).items()}
    assert all(loads["Belady"].sum() <= counted.sum() for counted in loads.values())
    for layer, capacity in enumerate(trace.capacity):
        needed = [trace.needed(layer, t) for t in range(trace.tokens)]
        assert loads["LRU"][layer].tolist() == replay_lru(needed, NEURONS, capacity).loads.tolist()
        assert loads["Belady"][layer].sum() == replay_belady(needed, NEURONS, capacity).loads.sum()


def test_a_token_that_needs_too_much_counts_the_same_for_every_policy() -> None:
    trace = trace_of([[0, 1, 2, 3], [0, 1]], 6, 3)
    for make in baselines(trace).values():
        assert play(trace, make)[0].tolist() == [4, 0]


def test_the_window_scores_0_and_belady_100() -> None:
    trace = random_trace(7)
    window, belady = (int(play(trace, baselines(trace)[name]).sum()) for name in ("window", "Belady"))
    assert (score(window, window, belady), score(belady, window, belady)) == (0, 100)
    assert score(window + 1, window, belady) < 0
    with pytest.raises(FlashliteError, match="nothing can be won"):
        score(5, 5, 5)


def test_a_score_keeps_its_sign_when_it_is_rounded() -> None:
    given = np.array([1e-9, -1e-9, 0.0, 5.0, -5.0, 1e6])
    assert rounded(given).tolist() == [1, 0, 0, 1, 0, 127]
    assert np.abs(rounded(np.array([1.0, -1.0, 3.0, -3.0]))).tolist() == [16, 16, 48, 48]


# The rules


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Change([7]), "drops neuron 7, which isn't in DRAM"),
        (Change([1]), "drops neuron 1, which this token needs"),
        (Change(), "holds 4 neurons where there is room for 3: drop 1 more"),
        (Change([0], [5]), "holds 4 neurons where there is room for 3: drop 1 more"),
        (Change([0], [2]), "loads neuron 2, which is held anyway"),
        (Change([0], [4]), "loads neuron 4, which is needed anyway"),
        (Change([0, 0]), "drop holds neuron 0 twice"),
        (Change([8]), "drop holds neuron 8 of a layer of 8"),
        (Change([-1]), "drop holds neuron -1 of a layer of 8"),
        (Change([0.0]), "drop is float64 of shape [1]: give neurons as [n] whole numbers"),
        (Change(np.array([True, False])), "drop is bool of shape [2]"),
        (Change([[0]]), "drop is int64 of shape [1, 1]"),
        ([0], "step returns list: return a Change"),
        (None, "step returns NoneType: return a Change"),
    ],
)
def test_an_answer_that_breaks_a_rule_changes_nothing_and_is_named(change: object, words: str) -> None:
    held = Held(8, 3)
    held.move(np.array([0, 1, 2]), Change())
    with pytest.raises(Foul) as foul:
        held.move(np.array([1, 4]), change)
    assert words in str(foul.value)
    assert (held.held.tolist(), held.size) == ([0, 1, 2], 3)
    load, drop = held.move(np.array([1, 4]), Change([0, 2], [5]))
    assert (load.tolist(), drop.tolist(), held.held.tolist()) == ([4, 5], [0, 2], [1, 4, 5])


def test_a_neuron_loaded_ahead_costs_as_much_as_any() -> None:
    class Ahead:
        def __init__(self, layer: int, neurons: int, capacity: int) -> None:
            self.first = True

        def step(self, token: Token) -> Change:
            load = [3] if self.first else []
            self.first = False
            return Change(load=load)

    trace = trace_of([[0], [3], [3]], 6, 6)
    assert play(trace, Ahead)[0].tolist() == [2, 0, 0]


def test_a_policy_is_given_copies_that_lead_to_no_other_token() -> None:
    trace, seen = random_trace(3), []

    class Spoils(Bounded):
        def step(self, token: Token) -> Change:
            assert token.needed.base is None
            assert token.scores().base is None
            answer = super().step(Token(token.needed.copy(), token.scores))
            seen.append(token.needed.tolist())
            token.needed[:] = 0
            token.scores()[:] = 99
            return answer

    assert (play(trace, Spoils) == play(trace, Bounded)).all()
    assert seen == [trace.needed(layer, t).tolist() for t in range(trace.tokens) for layer in range(trace.layers)]


# Entries, in processes of their own

STUB = (ROOT / "exercises/contest_policy.py").read_text()
RETURNS = "        return Change(drop)\n"
FAULTY = {
    "drops what is needed": ("        return Change(token.needed[:1])\n", r"layer 0, token \d+: it drops neuron \d+"),
    "drops nothing": ("        return Change()\n", r"layer 0, token \d+: it holds \d+ neurons where"),
    "gives floats": ("        return Change(drop * 1.0)\n", r"drop is float64 of shape \[\d+\]: give neurons"),
    "gives nothing": ("        pass\n", "step returns NoneType: return a Change"),
    "raises": ("        return Change([][0])\n", r"entry\.py:\d+: return Change\(\[\]\[0\]\)  → IndexError"),
    "ends": ("        __import__('os')._exit(0)\n", "it ended its process, with code 0"),
    "exits": ("        raise SystemExit(3)\n", r"entry\.py:\d+: raise SystemExit\(3\)  → SystemExit: 3"),
    "takes memory": ("        self.m = np.ones(10**9)\n", r"entry\.py:\d+: .*it used more than 2 GB of memory"),
    "writes over its answers": (
        "        import os\n        [os.write(n, b'[]\\n' * 99) for n in range(3, 9)]\n        return Change(drop)\n",
        "it wrote over its answers|OSError|it ended its process",
    ),
}  # fmt: skip


def enter(folder: Path, text: str, files: list[Path], time_limit: float = 60.0) -> tuple[float | None, str]:
    path = folder / "entry.py"
    path.write_text(text)
    standing = PolicyContest(files, []).enter(path, time_limit)
    assert (ENTRY in standing.rows) == (standing.score is not None)
    return standing.score, standing.message


@pytest.mark.parametrize("kind", FAULTY)
def test_a_faulty_entry_gets_its_line_and_no_score(kind: str, traces: list[Path], tmp_path: Path) -> None:
    answer, line = FAULTY[kind]
    assert STUB.count(RETURNS) == 1
    found, message = enter(tmp_path, STUB.replace(RETURNS, answer), traces[:1])
    assert found is None
    assert len(message.splitlines()) == 1
    assert re.search(line, message), message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("def Policy(:\n", r"entry.py:1: def Policy\(:  → SyntaxError"),
        ("Policy = None\n", r"entry\.py defines no Policy: restore it"),
        ("import not_there\n", r"entry\.py:1: import not_there  → ModuleNotFoundError"),
        ("raise SystemExit(0)\n", r"entry\.py:1: raise SystemExit\(0\)  → SystemExit"),
        ("# \u00e9".encode("latin-1").decode("latin-1") + "\nx = 1\n", r"entry\.py defines no Policy"),
    ],
)
def test_a_file_that_is_no_entry_is_named(text: str, line: str, traces: list[Path], tmp_path: Path) -> None:
    found, message = enter(tmp_path, text, traces[:1])
    assert found is None
    assert re.search(line, message), message


def test_an_endless_loop_ends_with_the_time_limit(traces: list[Path], tmp_path: Path) -> None:
    found, message = enter(tmp_path, STUB.replace(RETURNS, "        while True:\n            pass\n"), traces[:1], 3.0)
    assert (found, message) == (None, "still running after 3 s: is it too slow, or is there an endless loop?")


def test_the_running_start_is_the_window_and_what_it_prints_disturbs_nobody(traces: list[Path], tmp_path: Path) -> None:
    assert enter(tmp_path, STUB.replace(RETURNS, "        print('[{]', flush=True)\n" + RETURNS), traces) == (0.0, "")


def test_an_entry_scores_what_the_referee_counts(traces: list[Path], tmp_path: Path) -> None:
    text = "from flashlite.contest.baselines import LRU as Policy\n"
    rows = PolicyContest(traces, []).rows
    found, message = enter(tmp_path, text, traces)
    assert message == ""
    assert found == pytest.approx(score(rows["LRU"].cost, rows["window"].cost, rows["Belady"].cost))
    assert rows["LRU"].cost == sum(play(read_trace(path), LRU).sum() for path in traces)


def test_past_holds_the_traces_to_learn_from_but_never_the_graded_one(
    traces: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry fails unless what it may learn from is the other trace, layer by layer."""
    check = STUB.replace(
        "        self.capacity = capacity\n",
        "        self.capacity = capacity\n        raise ValueError([int(s.sum()) for s in past(layer, neurons)])\n",
    )
    path = tmp_path / "entry.py"
    path.write_text(check)
    for i, other in ((0, 1), (1, 0)):
        message = PolicyContest([traces[i]], traces).enter(path).message
        assert message.endswith(f"ValueError: [{int(read_trace(traces[other]).scores[0].sum(dtype=np.int64))}]")
    monkeypatch.setattr("flashlite.contest.traces._training", traces)
    assert [scores.shape for scores in past(1, NEURONS)] == [(40, NEURONS)] * 2
    assert past(1, NEURONS + 1) == past(9, NEURONS) == []


# Layouts


def test_reads_are_counted_after_merging_neighbours_and_small_gaps() -> None:
    place = np.arange(40)
    assert cost_of(np.array([3, 4, 5]), place) == Cost(1, 3, 0)
    assert cost_of(np.array([0, 1 + READ]), place) == Cost(1, 2, READ)
    assert cost_of(np.array([0, 2 + READ]), place) == Cost(2, 2, 0)
    assert cost_of(np.array([], np.int64), place) == Cost(0, 0, 0)
    assert Cost(2, 5, 1).total == 2 * READ + 6
    assert cost_of(np.array([0, 39]), place[::-1].copy()) == Cost(2, 2, 0)
    swapped = np.argsort(np.array([0, 39, *range(1, 39)]))
    assert cost_of(np.array([0, 39]), swapped) == Cost(1, 2, 0)


def test_loads_of_a_layout_are_those_of_the_window() -> None:
    trace = random_trace(5)
    counted = [[len(token) for token in layer] for layer in layout.loads_of(trace)]
    assert counted == play(trace, Bounded).tolist()


def planted(seed: int) -> Trace:
    """Every token needs three of eight groups, whose members are scattered over the stored order."""
    generator, groups = np.random.default_rng(seed), np.random.default_rng(0).permutation(64).reshape(8, 8)
    return trace_of([sorted(groups[generator.permutation(8)[:3]].ravel()) for _ in range(40)], 64, 24)


def test_a_chain_finds_planted_groups_and_the_stored_order_scores_0(tmp_path: Path) -> None:
    files = [tmp_path / f"{seed}.safetensors" for seed in (1, 2, 3)]
    for seed, path in enumerate(files):
        planted(seed).save(path)
    held = LayoutContest(files, files)
    reads = {name: row.columns["reads a token"] for name, row in held.rows.items()}
    assert reads["chain"] < reads["by frequency"]
    assert held.rows["one stretch"].cost <= held.rows["chain"].cost < held.rows["stored order"].cost
    assert held.enter(ROOT / "exercises/contest_layout.py").score == 0
    path = tmp_path / "entry.py"
    for answer, line in (
        ("np.arange(neurons)[1:]", "holds 63 neurons of 64"), ("[0] * neurons", "holds neuron 0 twice"),
        ("np.ones(neurons)", "is float64 of shape"), ("None", "is object of shape"),
    ):  # fmt: skip
        path.write_text(f"import numpy as np\ndef order(layer, neurons, past):\n    return {answer}\n")
        standing = held.enter(path)
        assert standing.score is None
        assert standing.message.startswith("the order of layer 0")
        assert line in standing.message


# A class


def test_a_class_has_a_line_a_student_and_litter_is_none(traces: list[Path], tmp_path: Path) -> None:
    classroom = tmp_path / "class"
    texts = {
        "ada": "from flashlite.contest.baselines import LRU as Policy\n", "bob": STUB,
        "cleo": STUB.replace(RETURNS, "        return Change()\n"),
    }  # fmt: skip
    for name, inner in (("ada", "exercises"), ("bob", ""), ("cleo", "course-main/exercises")):
        (classroom / name / inner).mkdir(parents=True)
        (classroom / name / inner / "contest_policy.py").write_text(texts[name])
    (classroom / "dora").mkdir()
    for litter in (".ipynb_checkpoints", "__MACOSX", ".git", "__pycache__"):
        shutil.copytree(classroom / "ada", classroom / litter)
    places = play_class(PolicyContest(traces, []), classroom, 60.0)
    assert [place.student for place in places] == ["ada", "bob", "cleo", "dora"]
    scores = [place.standing.score for place in places]
    assert scores[0] is not None
    assert scores[0] > 0 == scores[1]
    assert scores[2:] == [None, None]
    lines = as_csv(places).splitlines()
    assert lines[0] == "student,score,neurons a token,MB a token,message"
    assert lines[2].startswith("bob,0.00,")
    assert re.fullmatch(r'cleo,,,,"layer 0, token \d+: it holds .*"', lines[3])
    assert lines[4] == "dora,,,,handed in no contest_policy.py"
    for folder, words in ((tmp_path / "nowhere", "holds no folders"), (ROOT, "is a clone of the course")):
        with pytest.raises(FlashliteError, match=words):
            play_class(PolicyContest(traces, []), folder, 60.0)


# Traces


def test_a_trace_survives_its_file_and_a_damaged_one_is_one_line(tmp_path: Path) -> None:
    whole, path = random_trace(4), tmp_path / "a.safetensors"
    trace = replace(whole, scores=whole.scores[:, 3:])  # a view, whose numbers don't lie side by side
    trace.save(path)
    found = read_trace(path)
    assert (found.scores == trace.scores).all()
    assert {**vars(found), "scores": 0} == {**vars(trace), "scores": 0}
    content = path.read_bytes()
    assert trace.to_bytes() == content
    others = ((b'"version\\": 1', b'"version\\": 2'), (b'"I8"', b'"U8"'), (b"flashlite-trace", b"flashlite-other"))
    for damaged in (b"", content[:50], content[:-1], *(content.replace(*change) for change in others)):
        assert damaged != content
        path.write_bytes(damaged)
        with pytest.raises(FlashliteError, match=r"a\.safetensors is not a trace, or is damaged: .*; record it again$"):
            read_trace(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlashliteError, match="holds no traces: record some"):
        trace_files(tmp_path / "empty")


@pytest.fixture
def characters(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts of many characters, each of which is a token of the tiny model."""

    def tokenizer(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(letter) % 120 for letter in text]}

    monkeypatch.setattr(record, "load_tokenizer", lambda store: tokenizer)
    generator = np.random.default_rng(0)
    return ["".join(generator.choice(list("abcdefgh"), 400)) for _ in range(6)]


def test_the_same_seed_records_the_same_traces(tiny_store: Store, characters: list[str], tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        record.write_traces(record.record(tiny_store, characters, seed, 24, 4, "90%"), tmp_path / name)
    one, two, other = ([path.read_bytes() for path in trace_files(tmp_path / name)] for name in ("one", "two", "other"))
    assert one == two
    assert not set(one) & set(other)
    assert [path.name for path in trace_files(tmp_path / "one")] == [
        "01-text.safetensors", "02-greedy.safetensors", "03-text.safetensors", "04-sampled.safetensors",
    ]  # fmt: skip
    with pytest.raises(FlashliteError, match="exceed the model's 128"):
        record.record(tiny_store, characters, 3, 120, 1, "90%")
    with pytest.raises(FlashliteError, match="0 texts have 56 tokens, fewer than 1"):
        record.record(tiny_store, ["short"], 3, 24, 1, "90%")


def test_a_greedy_trace_is_what_the_dense_model_writes(
    tiny_model: OPTForCausalLM, tiny_store: Store, characters: list[str]
) -> None:
    trace = record.record(tiny_store, characters, 3, 24, 2, "90%")[1]
    prompt, written = list(trace.ids[: record.PROMPT]), list(trace.ids[record.PROMPT :])
    assert written == greedy(flashlite.load(tiny_store, predictor="oracle", dram_budget="100%"), prompt, 24)[0]
    fires: list[torch.Tensor] = []
    hook = tiny_model.model.decoder.layers[1].fc1.register_forward_hook(lambda m, a, out: fires.append(out))
    tiny_model(torch.tensor([trace.ids]))
    hook.remove()
    fired = fires[0].reshape(-1, 256)[record.PROMPT :] > 0.05
    assert (trace.scores[1] > 0)[fired.numpy()].mean() > 0.97, "the predictor of the tiny model is nearly right"


def test_the_shipped_traces_are_those_of_the_bundled_model(tmp_path: Path) -> None:
    """A sample: its scores on this machine, where a rounding may differ from that of the machine that recorded."""
    from flashlite.engine.predictor_file import PredictorSet
    from flashlite.storage.find import open_model

    store, trace = open_model("opt-mini"), read_trace(SHIPPED[-1])
    assert trace.model == store.manifest["name"]
    ids = list(trace.ids[: record.PROMPT + 16])
    found = record._scores(store, PredictorSet.load(store).layers, ids)[:, record.PROMPT :].astype(int)
    kept = trace.scores[:, :16].astype(int)
    assert np.abs(found - kept).max() <= 3
    assert ((found > 0) != (kept > 0)).mean() < 0.002


def test_the_shipped_traces_are_small_and_leave_much_to_win() -> None:
    assert 4 <= len(SHIPPED) <= 6
    assert sum(path.stat().st_size for path in SHIPPED) < 9e6
    assert (ROOT / PUBLIC / "README.md").is_file()
    for path in SHIPPED:
        trace = read_trace(path)
        needed = (trace.scores > 0).sum(2)
        assert (needed <= np.array(trace.capacity)[:, None]).mean() > 0.97, "nearly every token fits"


# In the engine


class Recorded(KeptByPolicy):
    """Notes what the engine asks."""

    asked: dict[int, list[tuple[np.ndarray, np.ndarray, int]]]

    def step(self, active: np.ndarray) -> object:  # type: ignore[override]
        scores = self._scores()
        step = super().step(active)
        self.asked.setdefault(self.layer, []).append((active, scores, len(step.load) + len(step.overflow)))
        return step


def policy_of(name: str) -> object:
    path = ROOT / name / "contest_policy.py"
    return load(whole_file(path, [])).Policy


@pytest.mark.parametrize("name", ["exercises", "solutions"])
@pytest.mark.parametrize("stage", [3, 4, 5])
def test_an_entry_in_the_engine_is_exact_and_reads_what_the_referee_counts(
    stage: int, name: str, tiny_model: OPTForCausalLM, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashlite.contest.traces._training", [])
    monkeypatch.setattr(entry, "Policy", policy_of(name))
    monkeypatch.setattr("flashlite.engine.policies.kept.KeptByPolicy", Recorded)
    prompt = list(range(3, 23))
    expected = tiny_model.generate(torch.tensor([prompt]), max_new_tokens=30, min_new_tokens=30, do_sample=False)
    for predictor in ("oracle", "trained"):
        budget = smallest_budget(tiny_store, stage, predictor) + 80 * tiny_store.shape.record_bytes
        monkeypatch.setattr(Recorded, "asked", {}, raising=False)
        model = flashlite.load(tiny_store, stage=stage, predictor=predictor, dram_budget=budget)
        tokens, _ = greedy(model, prompt, 30)
        if predictor == "oracle":
            assert tokens == expected[0, 20:].tolist()
        asked = [Recorded.asked[layer] for layer in range(tiny_store.layers)]
        scores = np.stack([[said for _, said, _ in layer] for layer in asked])
        assert all((np.flatnonzero(said > 0) == active).all() for layer in asked for active, said, _ in layer)
        capacity = tuple(ffn.window.capacity for ffn in model.flash.sparse)
        trace = Trace(scores, capacity, (0,) * scores.shape[1], tiny_store.shape.record_bytes, "tiny", "text", 0)
        counted = play(trace, entry.Policy)
        assert counted.tolist() == [[loads for _, _, loads in layer] for layer in asked]
        of_prompt = model.flash.stage.window  # these tokens' neurons pass with the whole layers
        read = sum(call.bytes for call in model.flash.calls if call.tokens == 1)
        if stage > 3:  # apart, two halves may share a block of the drive's grid
            assert read == counted[:, of_prompt:].sum() * tiny_store.shape.record_bytes
        distinct = sum(np.count_nonzero((layer > 0).any(0)) for layer in scores)
        assert counted.sum() > distinct, "some neurons leave and come back"


def test_a_policy_that_breaks_a_rule_gives_no_token(tiny_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Drops(Bounded):
        def step(self, token: Token) -> Change:
            return Change(token.needed)

    monkeypatch.setattr(entry, "Policy", Drops)
    model = flashlite.load(tiny_store, stage=5, predictor="oracle", dram_budget="80%")
    with pytest.raises(FlashliteError, match=r"the policy of layer 0 broke a rule: it drops neuron \d+, which"):
        greedy(model, [3, 4, 5], 4)


def test_a_policy_runs_at_stages_3_to_5_alone(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(entry, "Policy", Bounded)
    with pytest.raises(FlashliteError, match="runs at stages 3 to 5"):
        flashlite.load(tiny_store, stage=6, predictor="oracle", dram_budget="80%")
    assert greedy(flashlite.load(tiny_store, stage=2, predictor="oracle", dram_budget="80%"), [3, 4, 5], 4)
    monkeypatch.chdir(ROOT)
    for command in (["run", "--stage", "6"], ["bench", "--stages", "5-6"]):
        code, _, err = call(monkeypatch, capsys, *command, "--impl", "ref,contest=mine")
        assert (code, len(err.splitlines())) == (1, 1)
        assert "leave stage 6 out" in err
    monkeypatch.delattr(entry, "Policy")
    with pytest.raises(FlashliteError, match=r"entry\.py defines no Policy"):
        flashlite.load(tiny_store, stage=5, predictor="oracle", dram_budget="80%")


def test_impl_takes_the_policy_only_where_it_is_named() -> None:
    course = read_course(ROOT)
    assert POLICY not in choose(course, "mine")
    assert POLICY not in choose(course, "solutions,ex03=ref")
    assert set(choose(course, "ref,contest=mine")) == {POLICY}
    assert choose(course, "mine,contest=solutions")[POLICY].file == str(ROOT / "solutions/contest_policy.py")


# The command


def test_the_report_is_told_of_a_score_on_the_courses_own_traces(
    clone: Course, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clone.root)
    (clone.root / PUBLIC).mkdir(parents=True)
    shutil.copy(SHIPPED[0], clone.root / PUBLIC)
    shutil.copy(ROOT / "exercises/contest_policy.py", clone.root / "exercises")
    noted = clone.root / ".flashlite/contest.json"
    call(monkeypatch, capsys, "contest", "--entry", ROOT / "exercises/contest_policy.py")
    assert not noted.exists(), "another's entry is no score of this student's"
    call(monkeypatch, capsys, "contest")
    assert json.loads(noted.read_text()) == {"policy": {"score": 0.0}}
    assert contests(clone) == "- policy: 0.00 points"


def test_the_command_judges_writes_and_names_what_is_wrong(
    traces: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    given = ["--traces", traces[0].parent, "--plot", tmp_path / "a.png", "--json", tmp_path / "a.json"]
    code, out, err = call(monkeypatch, capsys, "contest", *given, "--entry", ROOT / "exercises/contest_policy.py")
    assert (code, err) == (0, "")
    assert "score 0.0" in out
    assert '"score": 0.0' in (tmp_path / "a.json").read_text()
    assert (tmp_path / "a.png").stat().st_size > 5000
    (tmp_path / "class/ada").mkdir(parents=True)
    (tmp_path / "class/ada/contest_policy.py").write_text(STUB.replace(RETURNS, "        pass\n"))
    given = ["--traces", traces[0].parent, "--csv", tmp_path / "out/a.csv"]
    code, out, _ = call(monkeypatch, capsys, "contest", "--class", tmp_path / "class", *given)
    assert code == 0
    assert "ada" in out
    assert "step returns NoneType" in (tmp_path / "out/a.csv").read_text().splitlines()[1]
    for arguments, words in (
        (["--entry", "nowhere.py"], "nowhere.py is missing: name your entry"),
        (["--traces", tmp_path / "nothing"], "nothing cannot be read"),
        (["--traces", tmp_path / "class"], "holds no traces"),
        (["--entry", "a.py", "--class", "b"], "write one of them"),
        (["--csv", tmp_path / "b.csv"], "write it with --class"),
        (["stray"], "stray"),
        (["--record", tmp_path / "class"], "exists already: name a new folder"),
        (["--record", tmp_path / "new", "--text", tmp_path / "no.txt"], "no.txt cannot be read"),
    ):
        code, _, err = call(monkeypatch, capsys, "contest", *arguments)
        assert code != 0, arguments
        assert len(err.splitlines()) == 1
        assert words in err
