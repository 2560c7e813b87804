"""What can't work on a command line is refused before torch is imported, in one line, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType, ModuleType

import pytest
import torch
from conftest import ROOT, call, copy_course
from matplotlib.figure import Figure

import flashlite
from flashlite.arguments import DTYPE_NAMES, STAGES, parse_stages
from flashlite.cli import options
from flashlite.cli.unsolved import CALIBRATE, CHOOSE, ESTIMATE, INT8_STAGES, PACK, STAGES_OF, TRAIN, of_pack
from flashlite.course.manifest import Course
from flashlite.course.open_clean import open_clean
from flashlite.errors import FlashliteError
from flashlite.storage.bundle import FFNShape, pieces
from flashlite.storage.safetensors_file import STORED
from flashlite.storage.store import Store

WITHOUT_TORCH = """
import contextlib, io, json, sys
from flashlite.cli.main import main

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise AssertionError(name + " was imported")

sys.meta_path.insert(0, Refuse())
results = []
for arguments in json.load(sys.stdin):
    sys.argv, out, err, code = ["flashlite", *arguments], io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            err.write(repr(error))
    results.append([code, out.getvalue(), err.getvalue()])
    for name in [name for name in sys.modules if name in ("torch", "transformers")]:
        raise SystemExit(name + " was imported")
print(json.dumps(results))
"""

# what is wrong: the command line, and words of the line that says so
MODELS = {
    "a folder that isn't there": ("/no/such/model", "not a folder and not a hub id"),
    "no name": ("", "not a folder and not a hub id"),
    "a file": ("a file", "is a file: name the folder"),
    "an empty folder": ("empty", "neither a store nor a checkpoint"),
}
SHARED = [  # of commands that load a model
    (("--dtype", "nonsense"), "'nonsense' is not one of 'fp32', 'bf16', 'fp16'"),
    (("--predictor", "nonsense"), "'nonsense' is not one of 'auto', 'trained', 'copy', 'oracle'"),
    *((("--window", window), f"a window of {window} tokens is not understood") for window in ("0", "-3", "2.5", "")),
    (("--dram-budget", "much"), "is not understood"), (("--dram-budget", "-5%"), "is not understood"),
    (("--dram-budget", "0"), "holds nothing"), (("--dram-budget", "0%"), "holds nothing"),
    (("--impl", "yours"), "is not understood at 'yours'"),
    (("--impl", "mine"), "exercise 0.1: delete this line and write merge_adjacent"),
    (("--impl", "ref,ex03=mine"), "exercise 3.2: delete this line and write step"),
]  # fmt: skip
OUTPUTS = [
    (("--json", "empty"), "--json empty is a folder"), (("--json", "a file/x.json"), "is not a folder"),
    (("--json", "/proc/x.json"), "--json /proc/x.json cannot be written"),
]  # fmt: skip
FIGURES = [
    (("--plot", "out.txt"), "has no ending that matplotlib knows"), (("--plot", "out"), "has no ending"),
    (("--plot", "x.png", "--json", "x.png"), "both name x.png"), (("--plot", "a file/x.png"), "is not a folder"),
    (("--plot", "/proc/x.png"), "cannot be written"),
]  # fmt: skip
NEW_FOLDER = [
    (("empty",), "empty exists already: choose another name"), (("a file/x",), "is not a folder"),
    (("/proc/x",), "/proc/x cannot be written"),
]  # fmt: skip
CASES: list[tuple[tuple[str, ...], str]] = [
    (("nonsense",), "No such command 'nonsense'"), (("--nonsense",), "No such option"),
    *((("run", model), words) for model, words in MODELS.values()),
    *((("bench", model), words) for model, words in MODELS.values()),
    *((("eval", model, "--text", "a file"), words) for model, words in MODELS.values()),
    *((("pack", model, "out"), words) for model, words in MODELS.values()),
    *((("run", *arguments), words) for arguments, words in SHARED),
    *((("bench", *arguments), words) for arguments, words in SHARED),
    (("run", "--stage", "9"), "unknown stage 9"), (("run", "--stage", "-1"), "unknown stage '-1'"),
    (("run", "--stage", "x"), "unknown stage 'x': choose 0 to 6, or naive, resident"),
    (("run", "--prompt", "x", "--prompt-file", "a file"), "--prompt and --prompt-file both give a prompt"),
    (("run", "--prompt-file", "nowhere"), "--prompt-file nowhere cannot be read: No such file"),
    (("run", "--prompt-file", "empty"), "--prompt-file empty cannot be read: it is a folder"),
    (("run", "--prompt-file", "nothing"), "nothing is empty: to begin a new text, write --prompt"),
    (("run", "--prompt-file", "latin"), "latin is not UTF-8 at byte 2"),
    (("run", "--prompt-file", "zeros"), "zeros holds a zero byte"),
    (("run", "--prompt-file", "/dev/zero"), "has more than 16 MiB"),
    (("run", "--prompt", "-"), "standard input, which --prompt - reads, is empty"),
    (("run", "--max-new-tokens", "0"), "--max-new-tokens"),
    (("bench", "--stage", "9"), "unknown stage 9"), (("bench", "--stages", "x"), "are not understood"),
    (("bench", "--stages", "pool,x"), "are not understood"),
    (("bench", "--stages", "5-3"), "write the lower number first"), (("bench", "--stages=-1"), "are not understood"),
    (("bench", "--stages", "0-99999999999"), "unknown stage 99999999999"),
    *((("bench", option, "-1"), option) for option in ("--tokens", "--prompt-tokens", "--rounds", "--slow-tokens",
                                                       "--check-tokens")),
    (("bench", "--impl", "ref,ex00=mine"), "exercise 0.1"),
    *((("probe", *arguments), words) for arguments, words in OUTPUTS + FIGURES),
    (("probe", "/no/such/dir"), "cannot be probed"), (("probe", "a file"), "cannot be probed"),
    (("probe", "/proc"), "cannot be probed"),
    *((("estimate", "opt-6.7b", *arguments), words) for arguments, words in OUTPUTS + FIGURES),
    (("estimate", "opt-6.7b", "--impl", "mine"), "exercise 0.2: delete"),
    (("probe", "--impl", "ref,ex00=mine"), "exercise 0.1: delete"),
    (("pack", "opt-mini", "out", "--impl", "mine"), "exercise 4.1: delete"),
    (("pack", "opt-mini", "out", "--dtype", "int8", "--impl", "ref,ex10=mine"), "exercise 10.1: delete"),
    (("bench", "--dtype", "int8", "--impl", "ref,ex10=mine"), "exercise 10.2: delete"),
    (("run", "--dtype", "int8", "--impl", "ref,ex10=mine"), "exercise 10.2: delete"),
    (("train-predictor", "store", "--text", "a file", "--impl", "ref,ex02=mine"), "exercise 2.2: delete"),
    (("train-predictor", "store", "--text", "a file", "--out", "empty"), "empty is a folder"),
    (("train-predictor", "store", "--text", "a file", "--out", "a file/x"), "is not a folder"),
    (("train-predictor", "store", "--text", "a file", "--steps", "0"), "--steps"),
    (("calibrate", "nowhere", "--text", "a file"), "is not a store"),
    (("calibrate", "store", "--text", "nowhere"), "nowhere cannot be read"),
    (("calibrate", "store", "--text", "a file", "--out", "empty"), "empty is a folder"),
    (("calibrate", "store", "--text", "a file", "--loss-budget", "0"), "--loss-budget"),
    (("calibrate", "store", "--text", "a file", "--loss-budget", "nan"), "--loss-budget"),
    (("calibrate", "store", "--text", "a file", "--tokens", "0"), "--tokens"),
    (("calibrate", "store", "--text", "a file", "--impl", "ref,ex02=mine"), "exercise 2.2: delete"),
    (("calibrate", "store"), "Missing option '--text'"),
    (("estimate", "opt-7b"), "choose one of opt-125m"), (("estimate", "opt-6.7b", "nowhere"), "cannot be probed"),
    (("estimate", "opt-6.7b", "--drive", "nonsense"), "no published drive is called 'nonsense'"),
    (("estimate", "opt-6.7b", "--drive", "Samsung"), "4 published drives are called 'Samsung'"),
    (("estimate", "opt-6.7b", "--dtype", "nonsense"), "'nonsense' is not one of"),
    *((("estimate", "opt-6.7b", "--against", file), "is not a result of bench --json")
      for file in ("nowhere.json", "a file", "other.json", "strange.json")),
    (("estimate", "opt-6.7b", "--against", "curveless.json"), "is not a curve"),
    *((("pack", "opt-mini", *arguments), words) for arguments, words in NEW_FOLDER),
    (("pack", "opt-mini", "--force", "a file"), "a file is not a store, so it isn't replaced"),
    (("pack", "opt-mini", "--force", "exercises"), "exercises is not a store, so it isn't replaced"),
    (("pack", "opt-mini", "out", "--layout", "x"), "layout 'x' is not known"),
    (("pack", "opt-mini", "out", "--layout", ""), "layout '' is not known"),
    (("pack", "opt-mini", "out", "--dtype", "x"), "'x' is not one of"),
    *((("synth", "opt-125m", *arguments), words) for arguments, words in NEW_FOLDER),
    (("synth", "opt-126m", "out"), "choose one of opt-125m"),
    (("synth", "opt-125m", "out", "--seed", "99999999999999999999"), "--seed"),
    (("synth", "opt-125m", "out", "--seed", "-1"), "--seed"),
    (("synth", "opt-125m", "out", "--layout", "bundled,x"), "layout 'bundled,x' is not known"),
    *((("verify", folder), "is not a store") for folder in ("nowhere", "empty", "a file")),
    (("verify", "nowhere"), "make one with `flashlite pack MODEL nowhere`"),
    *(((command, "falcon-mini"), "falcon-mini is not a store: make one with `flashlite pack falcon-mini OUT`")
      for command in ("verify", "card")),
    (("card", "nowhere"), "is not a store"), (("card", "a/b"), "is not a store"),
    (("card", "store", "--repo", "tiny"), "'tiny' is not the hub id of a repository: write OWNER/NAME"),
    (("card", "store", "--repo", "a/b/c"), "'a/b/c' is not the hub id"),
    (("stores", "--yes", "--remove", "no such store"), "there is nothing called 'no such store'"),
    *((("train-predictor", folder, "--text", "a file"), "is not a store") for folder in ("nowhere", "empty")),
    (("train-predictor", "store", "--text", "nowhere"), "nowhere cannot be read"),
    (("train-predictor", "store", "--text", "a file", "nowhere"), "nowhere cannot be read"),
    (("relufy", "opt-mini", "new", "--text", "nowhere"), "nowhere cannot be read"),
    (("relufy", "empty", "new", "--text", "a file"), "neither a store nor a checkpoint"),
    (("relufy", "a file", "new", "--text", "a file"), "name the folder that holds"),
    *((("relufy", "opt-mini", *arguments, "--text", "a file"), words) for arguments, words in NEW_FOLDER),
    (("relufy", "opt-mini", "new", "--text", "a file", "--zeros", "1"), "--zeros"),
    (("relufy", "opt-mini", "new", "--text", "a file", "--steps", "0"), "--steps"),
    (("relufy", "opt-mini", "new", "--text", "a file", "--plot", "a file/x.png"), "is not a folder"),
    (("train-predictor", "store", "--text", "empty"), "empty cannot be read"),
    (("train-predictor", "store", "--text", "a file", "--held-out", "nowhere"), "nowhere cannot be read"),
    (("train-predictor", "store", "--text", "a file", "--held-out", "a file", "other.json"), "needs its option"),
    (("train-predictor", "store", "--text", "a file", "--tokens", "-5"), "--tokens"),
    (("train-predictor", "store", "--text", "a file", "--recall", "2"), "--recall"),
    (("train-predictor", "store", "--text", "a file", "--recall", "nan"), "--recall"),
    (("train-predictor", "store", "--text", "a file", "--seed", "-1"), "--seed"),
    (("train-predictor", "store", "--text", "a file", "--dram-budget", "half"), "'half' is not understood"),
    (("train-predictor", "store"), "Missing option '--text'"),
    (("eval", "store", "--text", "nowhere"), "nowhere cannot be read"),
    (("eval", "store", "--text", "a file", "--tokens", "-5"), "--tokens"),
    *((("eval", "store", "--text", "a file", *arguments), words) for arguments, words in OUTPUTS),
]  # fmt: skip


@pytest.fixture(scope="module")
def opt_mini(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return flashlite.pack("opt-mini", tmp_path_factory.mktemp("arguments") / "opt-mini", layouts=("bundled",))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[int, str, str]]:
    """What the command line says of every case, run in one process that can't import torch, in an untouched clone."""
    folder = tmp_path_factory.mktemp("arguments") / "clone"
    copy_course(folder)
    (folder / "empty").mkdir()
    (folder / "store").mkdir()
    (folder / "store/manifest.json").write_text("{}")
    (folder / "a file").write_text("text")
    for name, content in {"nothing": b"", "latin": b"na\xefve", "zeros": b"a\0b"}.items():
        (folder / name).write_bytes(content)
    (folder / "other.json").write_text("[]")
    result = json.loads((ROOT / "results/bench-opt-6.7b-bf16.json").read_text())
    (folder / "curveless.json").write_text(json.dumps(result | {"curve": {}}))
    (folder / "strange.json").write_text(json.dumps(result | {"stages": [{"name": 3}]}))
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-B", "-c", WITHOUT_TORCH], input=json.dumps([arguments for arguments, _ in CASES]),
        cwd=folder, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(folder.rglob("*")) == before
    return {arguments: tuple(answer) for (arguments, _), answer in zip(CASES, json.loads(done.stdout), strict=True)}


@pytest.mark.parametrize(("arguments", "words"), CASES, ids=[" ".join(arguments) for arguments, _ in CASES])
def test_refused_before_torch_is_imported(
    arguments: tuple[str, ...], words: str, answers: dict[tuple[str, ...], tuple[int, str, str]]
) -> None:
    code, out, err = answers[arguments]
    assert code in (1, 2)
    assert len(err.splitlines()) == 1, err
    assert err.startswith("flashlite: ")
    assert words in err
    assert out == ""


def test_stages_may_be_named() -> None:
    assert parse_stages("naive,5, overlap") == [0, 5, 6]
    assert parse_stages("pool") == parse_stages("5") == [5]
    assert parse_stages("window-overlap") == parse_stages("3-6") == [3, 4, 5, 6]


def test_names_that_need_no_torch_are_those_of_the_code_behind_them() -> None:
    from flashlite.arguments import LAYOUTS
    from flashlite.engine.stages import LADDER

    assert tuple(LADDER) == STAGES
    assert tuple(STORED) == DTYPE_NAMES
    assert all(pieces(layout, FFNShape(8, 8, 4, 512)) for layout in LAYOUTS)


def test_stages_are_parsed() -> None:
    assert parse_stages("0-5") == [0, 1, 2, 3, 4, 5]
    assert parse_stages("5,0") == [5, 0]
    assert parse_stages("4") == [4]
    for wrong in ("5-3", "0-7", "", "a", "-1", "0-", "1,,2", "0-99999999999"):
        with pytest.raises(FlashliteError):
            parse_stages(wrong)


@pytest.mark.parametrize("stage", range(len(STAGES)))
def test_exercises_that_a_stage_needs_are_those_that_it_calls(stage: int, tiny_store: Store, course: Course) -> None:
    assert called(tiny_store, stage, course) == {
        id for id, stages in STAGES_OF.items() if stage in parse_stages(stages)
    }


@pytest.mark.parametrize("stage", range(len(STAGES)))
def test_every_stage_of_int8_calls_the_exercise_that_is_about_it(stage: int, int8_store: Store, course: Course) -> None:
    about = {exercise.id for exercise in course.exercises if ".int8." in exercise.module}
    assert called(int8_store, stage, course) & about == INT8_STAGES


@pytest.fixture(scope="module")
def int8_store(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return flashlite.pack(tiny_checkpoint, tmp_path_factory.mktemp("int8") / "store", "int8")


def called(store: Store, stage: int, course: Course) -> set[str]:
    """The exercises that a stage calls while a model is loaded and writes a few tokens."""
    exercise_of: dict[CodeType, str] = {}
    for exercise in course.exercises:
        function = import_module(exercise.module)
        for name in exercise.qualname.split("."):
            function = getattr(function, name)
        exercise_of[function.__code__] = exercise.id
    found = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code in exercise_of:
            found.add(exercise_of[frame.f_code])

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        model = flashlite.load(store, stage=stage, dram_budget="2MB")
        model.generate(torch.arange(3, 23)[None], max_new_tokens=8, do_sample=False)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (("pack", "{checkpoint}", "{out}/store"), PACK),
        (("pack", "{checkpoint}", "{out}/split", "--layout", "split"), of_pack("split", None)),
        (("pack", "{checkpoint}", "{out}/int8", "--dtype", "int8"), of_pack("bundled,split", "int8")),
        (("estimate", "opt-125m", "--drive", "870", "--plot", "{out}/estimate.png"), ESTIMATE),
        (
            ("train-predictor", "{store}", "--text", "course.toml", "--tokens", "6000", "--steps", "1",
             "--out", "{out}/predictor"),
            TRAIN,
        ),
        (
            ("train-predictor", "{store}", "--text", "course.toml", "--tokens", "6000", "--steps", "1",
             "--dram-budget", "50%", "--out", "{out}/predictor"),
            TRAIN | CHOOSE,
        ),
        (
            ("calibrate", "{store}", "--text", "course.toml", "--tokens", "2048", "--loss-budget", "0.05",
             "--out", "{out}/predictor"),
            CALIBRATE,
        ),
    ],
    ids=["pack", "pack split", "pack int8", "estimate", "train-predictor", "train-predictor for a budget", "calibrate"],
)  # fmt: skip
def test_exercises_that_a_command_needs_are_those_that_it_calls(
    arguments: tuple[str, ...], needed: set[str], tiny_checkpoint: Path, opt_mini: Store, tmp_path: Path
) -> None:
    filled = [part.format(checkpoint=tiny_checkpoint, store=opt_mini.path, out=tmp_path) for part in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "flashlite", *filled, "--impl", "solutions"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr  # words go to the error stream where JSON goes to stdout
    assert set(re.findall(r"^(\d+\.\d) +\w.* [1-9]\d*$", said, re.M)) == needed


@pytest.mark.parametrize("device", ["/dev/null", "/dev/stdout"])
def test_a_device_is_written_to_and_not_replaced(device: str, capfd: pytest.CaptureFixture[str]) -> None:
    options.check_outputs(Path(device), None)
    options.write_json(Path(device), {"a": 1})
    assert not Path(device).is_file() or Path(device).is_symlink()
    assert capfd.readouterr().out == ("" if device == "/dev/null" else '{\n "a": 1\n}\n')


def test_json_goes_to_the_file_or_to_whoever_reads_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(json_file: Path | None, terminal: bool) -> str:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
        options.show_json(json_file, {"a": 1})
        return capsys.readouterr().out

    assert said(None, terminal=True) == ""
    assert said(None, terminal=False) == said(Path("-"), terminal=True) == '{"a": 1}\n'
    assert said(tmp_path / "new/out.json", terminal=False) == ""
    assert json.loads((tmp_path / "new/out.json").read_text()) == {"a": 1}


def test_a_figure_that_nobody_asked_for_is_not_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(plots: ModuleType) -> Figure:
        return plots.bars({"a": 1.0}, "", "")

    monkeypatch.chdir("/proc")  # where no folder can be made
    options.show_plot(draw, None, "probe")
    assert capsys.readouterr().out == "no plot at .flashlite/probe.png: No such file or directory\n"
    with pytest.raises(FlashliteError, match=r"--plot a\.png cannot be written: No such file"):
        options.show_plot(draw, Path("a.png"), "probe")


def test_results_that_cannot_be_written_any_more_are_one_line() -> None:
    with pytest.raises(FlashliteError, match=r"--json /proc/new/out\.json cannot be written"):
        options.write_json(Path("/proc/new/out.json"), {})
    with pytest.raises(FlashliteError, match=r"/proc/out\.json cannot be written"):
        options.write_json(Path("/proc/out.json"), {})


def test_home_is_meant_by_a_tilde_that_the_shell_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert options.expanded(Path("~/out.json")) == tmp_path / "out.json"
    assert options.expanded(None) is None


@pytest.mark.parametrize(
    "arguments", [("run", "a/b"), ("bench", "a/b"), ("eval", "a/b", "--text", "README.md"), ("pack", "a/b", "{out}")]
)
def test_a_revision_reaches_the_hub(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def find(model: str, revision: str | None) -> None:
        raise FlashliteError(f"{model} at {revision}")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("flashlite.storage.find.find_snapshot", find)
    monkeypatch.setattr("flashlite.storage.hub.find_snapshot", find)
    filled = [part.format(out=tmp_path / "out") for part in arguments]
    assert call(monkeypatch, capsys, *filled, "--revision", "v1")[2] == "flashlite: a/b at v1\n"


@pytest.mark.slow
def test_a_revision_is_opened_before_exercises_are_plugged_in() -> None:
    with pytest.raises(FlashliteError, match="only hub models have revisions, and opt-mini is not one"):
        open_clean("opt-mini", None, "v1")


@pytest.mark.parametrize("flag", ["-h", "--help", "--version", None])
def test_help_and_version(
    flag: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(monkeypatch, capsys, *([flag] if flag else []))
    assert (code, err) == (0, "")
    assert out == f"flashlite {flashlite.__version__}\n" if flag == "--version" else "train-predictor" in out
