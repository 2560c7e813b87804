"""Systems that lack something: what takes its place gives the same tokens, and says so in one line."""

from __future__ import annotations

import ast
import errno
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, TINY, add_predictor, save_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import OPTForCausalLM, PreTrainedTokenizerFast

import flashlite
from flashlite.bench import cap
from flashlite.bench.decoding import greedy
from flashlite.cli import main as cli
from flashlite.drive import aio as native
from flashlite.drive import flash
from flashlite.drive.direct import aligned_buffer
from flashlite.drive.flash import FlashFile
from flashlite.engine import resident
from flashlite.engine.stages import LADDER
from flashlite.errors import FlashliteError, ReadError, StoreError
from flashlite.storage import find, pack
from flashlite.storage.store import Store

PROMPT, TOKENS = list(range(3, 60, 5)), 8
AMPLE = "4MB"  # every neuron of the tiny model finds room, on a grid of 16384 bytes too
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux's own interfaces")


@pytest.fixture(scope="module")
def expected(tiny_model: OPTForCausalLM) -> list[int]:
    """What the dense model writes."""
    return greedy(tiny_model, PROMPT, TOKENS)[0]


def written(store: Store | Path, stage: int) -> list[int]:
    """What a stage writes with the oracle."""
    return greedy(flashlite.load(store, dram_budget=AMPLE, stage=stage, predictor="oracle"), PROMPT, TOKENS)[0]


@pytest.fixture
def fresh_backend() -> Iterator[None]:
    """Whichever backend this process chose is forgotten, before and after."""
    flash.default_backend.cache_clear()
    yield
    flash.default_backend.cache_clear()


def refuse_setup(monkeypatch: pytest.MonkeyPatch, code: int, allowed: int = 0) -> None:
    """The system makes `allowed` queues for native AIO and then refuses."""
    real, left = native._syscall, [allowed]
    setup = native.NativeAio()._setup

    def call(number: int, *args: Any) -> int:
        if number == setup:
            left[0] -= 1
            if left[0] < 0:
                return -code
        return real(number, *args)

    monkeypatch.setattr(native, "_syscall", call)


# Drives


@linux_only
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this system has no memory as a file system")
@pytest.mark.parametrize("stage", [0, 5, 6])
def test_a_file_system_in_memory(
    stage: int, tiny_checkpoint: Path, expected: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        store = flashlite.pack(tiny_checkpoint, Path(folder) / "store")
        assert written(store, stage) == expected
        direct = store.open_resident().direct
    assert direct or all("reads are buffered, because this file system refuses" in line for line in caplog.messages)
    assert direct == (not caplog.messages)


@pytest.mark.parametrize("lack", ["file system", "system"])
@pytest.mark.parametrize("stage", range(len(LADDER)))
def test_buffered_reads_where_there_are_no_direct_ones(
    stage: int, lack: str, tiny_store: Store, expected: list[int], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    real = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, *args, **kwargs)

    direct = getattr(os, "O_DIRECT", 0)
    if lack == "system":
        monkeypatch.delattr(os, "O_DIRECT", raising=False)
    else:
        monkeypatch.setattr(os, "open", refuse)
    assert written(tiny_store, stage) == expected
    names = {str(tiny_store.path / "resident.safetensors")}
    announced = {line.split(": ")[1] for line in caplog.messages if f"reads are buffered, because this {lack}" in line}
    assert names <= announced
    assert len(announced) >= 2


def test_a_system_without_vectored_reads_says_so(tiny_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "preadv")
    with pytest.raises(ReadError, match="use Linux, macOS, or WSL on Windows"):
        flashlite.load(tiny_store, dram_budget=AMPLE)


@pytest.mark.parametrize("grid", [512, 4096, 16384])
@pytest.mark.parametrize("stage", [0, 4, 5, 6])
def test_drives_of_any_grid(
    stage: int, grid: int, tiny_checkpoint: Path, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "direct_alignment", lambda path: grid)
    monkeypatch.setattr(flash, "direct_alignment", lambda path: grid)
    monkeypatch.setattr(resident, "direct_alignment", lambda path: grid)
    store = flashlite.pack(tiny_checkpoint, tmp_path / "store")
    assert store.shape.record_bytes % grid == 0
    assert written(store, stage) == expected
    for persistent in (True, False):
        needed = resident.ResidentWeights.bytes_needed(store, persistent)
        assert resident.ResidentWeights(store, persistent).nbytes <= needed


# Reads in flight


@linux_only
@pytest.mark.usefixtures("fresh_backend")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EAGAIN, errno.ENOMEM], ids=errno.errorcode.get)
@pytest.mark.parametrize("stage", [0, 5, 6])
def test_threads_read_where_native_aio_is_refused(
    stage: int, code: int, tiny_store: Store, expected: list[int], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    refuse_setup(monkeypatch, code)
    assert written(tiny_store, stage) == expected
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"reading with 32 threads, because native AIO is refused (io_setup: {os.strerror(code)}" in caplog.text
    assert ("fs.aio-max-nr" in caplog.text) == (code == errno.EAGAIN)


@linux_only
@pytest.mark.usefixtures("fresh_backend")
def test_native_aio_that_runs_out_before_stage_6_reads_ahead(
    tiny_store: Store, expected: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flash.default_backend()
    FlashFile(tiny_store.path / "resident.safetensors")
    refuse_setup(monkeypatch, errno.EAGAIN, allowed=1)  # a prompt's stream keeps two batches in flight
    assert written(tiny_store, 6) == expected
    assert len(caplog.messages) == 1
    assert "reading with 32 threads" in caplog.text


@linux_only
def test_native_aio_that_runs_out_between_reads_is_one_line(tiny_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FlashFile(tiny_store.path / "resident.safetensors", native.NativeAio(4))
    refuse_setup(monkeypatch, errno.EAGAIN)
    buffer = aligned_buffer(2, 4096)
    first = file.submit(np.array([0]), 4096, buffer, np.array([0]))
    with pytest.raises(ReadError, match=r"io_setup: .*fs\.aio-max-nr bounds"):
        file.submit(np.array([4096]), 4096, buffer, np.array([1]))
    first.wait()
    file.read(np.array([4096]), 4096, buffer, np.array([1]))
    assert buffer.tobytes() == file.path.read_bytes()[:8192]


# Processes


def run_python(script: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script in a fresh interpreter that finds this flashlite."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    known = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(command, env=known, capture_output=True, text=True, timeout=120, check=False)


WRITE = """
import json, sys
import flashlite
from flashlite.bench.decoding import greedy

store, prompt, tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
for stage in (0, 5, 6):
    model = flashlite.load(store, dram_budget="2MB", stage=stage, predictor="oracle")
    print(json.dumps(greedy(model, prompt, tokens)[0]))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a core")
def test_one_core_is_enough(tiny_store: Store, expected: list[int]) -> None:
    """Reads go on in a thread while the caller computes, and here both share a core."""
    bind = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    done = run_python(bind + WRITE, tiny_store.path, json.dumps(PROMPT), TOKENS)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [expected] * 3, done.stderr


POORER = """
import importlib.abc, mmap, multiprocessing.resource_tracker, os, pkgutil, sys
import matplotlib.pyplot, numpy.testing, psutil, pytest, torch  # others may need what is taken away now
from transformers import AutoTokenizer, OPTForCausalLM, TextStreamer

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {"fcntl", "resource"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
for name in ("fcntl", "resource"):
    sys.modules.pop(name, None)
for module, names in ((os, ("O_DIRECT", "posix_fadvise", "sched_getaffinity", "killpg", "sysconf")),
                      (mmap, ("MADV_HUGEPAGE", "MADV_DONTNEED", "MAP_PRIVATE"))):
    for name in names:
        delattr(module, name)

import flashlite
for module in pkgutil.walk_packages(flashlite.__path__, "flashlite."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
from flashlite.course.limits import missing
print("missing:", missing())
"""


@linux_only
def test_where_linux_interfaces_are_missing_all_imports_and_every_token_is_right(
    tiny_store: Store, expected: list[int]
) -> None:
    done = run_python(POORER + WRITE, tiny_store.path, json.dumps(PROMPT), TOKENS)
    first, *tokens = done.stdout.splitlines() or [""]
    assert first.startswith("missing: students' code runs without limits"), done.stderr
    assert [json.loads(line) for line in tokens] == [expected] * 3
    assert "reads are buffered, because this system has no direct reads" in done.stderr


# Folders


def test_a_home_that_cannot_be_written_is_one_line_in_a_real_process() -> None:
    variables = {"HOME": "/dev/null/x", "FLASHLITE_HOME": "", "XDG_CACHE_HOME": ""}
    script = "import sys\nfrom flashlite.cli.main import main\nsys.argv = ['flashlite', 'run', 'opt-mini']\nmain()"
    done = run_python(script, **variables)
    assert (done.returncode, done.stdout) == (1, "")
    line, *more = done.stderr.splitlines()
    assert more == []
    assert line.startswith("flashlite: /dev/null/x/.cache/flashlite/stores/opt-mini-")
    assert line.endswith("cannot be written: Not a directory; set FLASHLITE_HOME to a folder where it can")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC], ids=errno.errorcode.get)
def test_a_cache_folder_that_cannot_be_written_is_one_line(
    code: int, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.mkdir

    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.is_relative_to(tmp_path):
            raise OSError(code, os.strerror(code), str(path))
        real(path, *args, **kwargs)

    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError, match=f"{os.strerror(code)}; set FLASHLITE_HOME to a folder where it can") as error:
        flashlite.load(tiny_checkpoint)
    assert "\n" not in str(error.value)


def test_a_user_without_home_needs_none_for_a_store_and_is_told_otherwise(
    tiny_store: Store, tiny_checkpoint: Path, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", lacks)
    for name in ("FLASHLITE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert written(tiny_store.path, 5) == expected
    with pytest.raises(FlashliteError, match="this user has no home folder: set FLASHLITE_HOME"):
        flashlite.load(tiny_checkpoint)
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    assert written(tiny_checkpoint, 1) == expected


@pytest.mark.parametrize(
    "variables", [("FLASHLITE_HOME", "f"), ("XDG_CACHE_HOME", "x/flashlite"), ("HOME", "h/.cache/flashlite")]
)
def test_where_packed_models_are_kept(variables: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    name, place = variables
    for other in ("FLASHLITE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(other, "")  # as good as unset
    monkeypatch.setenv(name, place.split("/")[0])
    assert find.home() == Path(place)


def test_a_name_too_long_for_a_file_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("x" * 5000, "y/" * 3000):
        with pytest.raises(FlashliteError) as error:
            flashlite.load(name)
        assert "\n" not in str(error.value)


FOLDER = "Ordner mit Leerzeichen äöü 模型"


@pytest.fixture(scope="module")
def strange_folder(tiny_model: OPTForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of that name, with a checkpoint and a tokenizer in it."""
    folder = tmp_path_factory.mktemp("names") / FOLDER
    checkpoint = save_checkpoint(tiny_model, folder / "ein Modell")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(TINY["vocab_size"])}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w2", eos_token="w2").save_pretrained(checkpoint)
    (folder / "ein Text.txt").write_text(" ".join(f"w{3 + i * i % 125}" for i in range(2600)))
    return folder


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """What a command that succeeds prints."""
    monkeypatch.setattr(sys, "argv", ["flashlite", *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    return out


def test_folders_of_any_name(
    strange_folder: Path, tiny_model: OPTForCausalLM, expected: list[int], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """From a checkpoint to text, by the command line."""
    call = partial(command_line, monkeypatch, capsys)
    store, text = strange_folder / "der Speicher 模", strange_folder / "ein Text.txt"
    assert str(store) in call("pack", strange_folder / "ein Modell", store)
    assert "complete and unaltered" in call("verify", store)
    assert "recall" in call("train-predictor", store, "--text", text)
    add_predictor(Store(store), tiny_model)
    assert written(store, 5) == expected
    assert "w5 w7" in call("run", store, "--prompt", "w5 w7", "--max-new-tokens", 3, "--dram-budget", "1MB")


@pytest.mark.slow
def test_a_bench_in_folders_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, call = tmp_path / FOLDER, partial(command_line, monkeypatch, capsys)
    call("pack", "opt-mini", folder / "ö", "--layout", "bundled")  # large enough to measure a drive with
    files = ("--plot", folder / "ein Bild.png", "--json", folder / "ü.json")
    out = call("bench", folder / "ö", "--stage", 5, "--tokens", 8, "--rounds", 1, *files)
    assert "5 pool" in out
    assert json.loads((folder / "ü.json").read_text())["stages"][0]["tokens_equal"]
    assert (folder / "ein Bild.png").stat().st_size > 0


def test_abandoned_folders_of_a_name_with_wildcards_are_its_own(tiny_checkpoint: Path, tmp_path: Path) -> None:
    beyond_any_pid = 2**22 + 1
    for name in (".[ab]*", ".a1"):
        (tmp_path / f"{name}.writing-{beyond_any_pid}").mkdir()
    (tmp_path / ".[ab]*.writing-notes").mkdir()
    flashlite.pack(tiny_checkpoint, tmp_path / "[ab]*")
    assert sorted(os.listdir(tmp_path)) == [".[ab]*.writing-notes", f".a1.writing-{beyond_any_pid}", "[ab]*"]


# Control groups


@pytest.mark.parametrize("refused", ["mkdir", "limit"])
def test_no_rights_to_control_groups_are_announced(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    monkeypatch.setattr(cap, "CGROUPS", tmp_path)
    monkeypatch.setattr(cap, "_works", lambda command: False)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir" if refused == "mkdir" else "write_text", refuse)
    with cap.memory_cap(10**9) as limit:
        assert not limit.enforced
        assert limit.wrap(["true"]) == ["true"]
    assert [line.split(":")[1] for line in caplog.messages] == [" the memory cap of 1000000000 bytes is not enforced"]
    assert os.listdir(tmp_path) == ["cgroup.controllers"]


# Python 3.10

SOURCES = sorted(
    path for name in ("flashlite", "exercises", "solutions", "tests", "tools") for path in (ROOT / name).rglob("*.py")
)
NEWER = {  # what came after 3.10, of what a library like this one is tempted by
    "typing": {"Self", "Never", "assert_never", "assert_type", "reveal_type", "LiteralString", "Required",
               "NotRequired",
               "TypeVarTuple", "Unpack", "override", "dataclass_transform", "TypeAliasType", "ReadOnly", "TypeIs"},
    "enum": {"StrEnum", "ReprEnum", "verify", "member", "nonmember"}, "datetime": {"UTC"}, "hashlib": {"file_digest"},
    "contextlib": {"chdir"}, "itertools": {"batched"}, "math": {"cbrt", "exp2", "sumprod", "fma"},
    "asyncio": {"TaskGroup", "Runner", "timeout", "Barrier"}, "operator": {"call"}, "inspect": {"getmembers_static"},
    "collections.abc": {"Buffer"}, "warnings": {"deprecated"}, "copy": {"replace"}, "types": {"get_original_bases"},
    "os": {"process_cpu_count", "listdrives"}, "builtins": {"ExceptionGroup", "BaseExceptionGroup"},
    "sys": {"exception", "activate_stack_trampoline"}, "logging": {"getLevelNamesMapping", "getHandlerByName"},
}  # fmt: skip


def newer_names(tree: ast.AST) -> Iterator[str]:
    """Names of the standard library that Python 3.10 lacks, but for those behind a look at sys.version_info."""
    if isinstance(tree, ast.If) and "sys.version_info" in ast.unparse(tree.test):
        return
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names if alias.name == "tomllib")
    elif isinstance(tree, ast.ImportFrom):
        newer = {"tomllib": {alias.name for alias in tree.names}} | NEWER
        yield from (
            f"{tree.module}.{alias.name}" for alias in tree.names if alias.name in newer.get(tree.module or "", ())
        )
    elif isinstance(tree, ast.Attribute) and isinstance(tree.value, ast.Name):
        yield from [f"{tree.value.id}.{tree.attr}"] if tree.attr in NEWER.get(tree.value.id, ()) else []
    elif isinstance(tree, ast.Name) and tree.id in NEWER["builtins"]:
        yield tree.id
    for child in ast.iter_child_nodes(tree):
        yield from newer_names(child)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_3_10_can_read_it(path: Path) -> None:
    assert list(newer_names(ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10)))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import tomllib", ["tomllib"]),
        ("from tomllib import loads", ["tomllib.loads"]),
        ("from typing import Any, Self", ["typing.Self"]),
        ("import itertools\nitertools.batched('ab', 1)", ["itertools.batched"]),
        ("try:\n    pass\nexcept ExceptionGroup:\n    pass", ["ExceptionGroup"]),
        ("if sys.version_info >= (3, 11):\n    import tomllib\nelse:\n    import tomli as tomllib", []),
        ("import itertools\nitertools.pairwise('ab')", []),
    ],
)
def test_newer_names_are_seen(source: str, found: list[str]) -> None:
    assert list(newer_names(ast.parse(source))) == found
