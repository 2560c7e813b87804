"""Writing that is interrupted: what was there stays or is replaced as a whole, and the next writer clears up."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flashlite
from flashlite.engine.predictor_file import PredictorSet
from flashlite.errors import PredictorError, StoreError
from flashlite.storage import atomic
from flashlite.storage.atomic import new_file, new_folder, write_file
from flashlite.storage.store import PREDICTOR, Store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="its writers are forked and limited as on Linux")

KILLS = 6  # of each program, at random moments
PACKING_STEPS, PLANTING_STEPS, TRAINING_STEPS = 14, 19, 3  # in the file system
REPLACING_STEPS = {True: 21, False: 26}  # those of `pack`, if names can be swapped and if not
SWAPS = [pytest.param(True, id="names swap"), pytest.param(False, id="names don't swap")]
DEAD = 2**22 + 1  # beyond any process's number


class Writer:
    """A process that writes what it is told to; see writers.py."""

    def __init__(self) -> None:
        command = [sys.executable, Path(__file__).with_name("writers.py")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, program: str, out: Path, **job: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"program": program, "out": out, **job}, default=str) + "\n")
        self.process.stdin.flush()

    def end(self) -> dict[str, Any]:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def __call__(self, program: str, out: Path, **job: Any) -> dict[str, Any]:
        self.begin(program, out, **job)
        return self.end()

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def writers() -> Iterator[tuple[Writer, Writer]]:
    pair = Writer(), Writer()
    yield pair
    for writer in pair:
        writer.close()


@pytest.fixture
def writer(writers: tuple[Writer, Writer]) -> Writer:
    return writers[0]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder that only the writers under test write to."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def verify(path: Path) -> Store:
    """As `flashlite verify` does."""
    store = Store(path)
    store.verify()
    if (path / PREDICTOR).exists():
        PredictorSet.load(store)
    return store


def assert_whole(
    target: Path, before: dict[str, str] | None, dtype: str | None = None, swaps: bool = True
) -> None:  # fmt: skip
    """What a killed writer may leave: nothing or a complete store, and the one from before in its place, unchanged; or,
    where names can't be swapped, moved away where the next writer finds it."""
    if target.exists():
        store = verify(target)
        assert contents(target) == before or dtype in (None, store.dtype_name)
    elif before is not None:
        assert not swaps
        (old,) = target.parent.glob(f".{target.name}.old-*")
        assert contents(old) == before


def moments(seconds: float) -> list[float]:
    """When to kill what takes so long."""
    return np.random.default_rng(0).uniform(0, seconds, KILLS).tolist()


# Killed


def try_packing(writer: Writer, source: Path, old: Path | None, home: Path, swaps: bool = True, **when: Any) -> bool:
    """Kill `pack`, replacing the store `old` if one is given, then let it end. Returns whether it was killed."""
    target, before = home / "store", contents(old) if old else None
    if old:
        shutil.copytree(old, target)
    options = {"dtype": "bf16", "replace": old is not None}
    killed = writer("pack", target, source=source, options=options, swaps=swaps, **when)["killed"]
    assert_whole(target, before, "bf16", swaps)
    answer = writer("pack", target, source=source, options=options | {"replace": True})
    assert answer["error"] is None
    assert verify(target).dtype_name == "bf16"
    assert os.listdir(home) == ["store"]
    shutil.rmtree(target)
    return killed


def test_pack_killed_before_any_step(writer: Writer, tiny_checkpoint: Path, home: Path) -> None:
    step = 1
    while try_packing(writer, tiny_checkpoint, None, home, step=step):
        step += 1
    assert step - 1 == PACKING_STEPS


@pytest.mark.parametrize("swaps", SWAPS)
def test_a_replacing_pack_killed_before_any_step(
    swaps: bool, writer: Writer, tiny_checkpoint: Path, tiny_store: Store, home: Path
) -> None:
    step = 1
    while try_packing(writer, tiny_checkpoint, tiny_store.path, home, swaps, step=step):
        step += 1
    assert step - 1 == REPLACING_STEPS[swaps]


def test_pack_killed_at_any_moment(writer: Writer, tiny_checkpoint: Path, tiny_store: Store, home: Path) -> None:
    whole = writer("pack", home / "store", source=tiny_checkpoint)
    shutil.rmtree(home / "store")
    killed = [try_packing(writer, tiny_checkpoint, tiny_store.path, home, delay=d) for d in moments(whole["seconds"])]
    assert sum(killed) > KILLS / 2


def try_planting(writer: Writer, home: Path, **when: Any) -> bool:
    target = home / "planted"
    killed = writer("synth", target, **when)["killed"]
    assert_whole(target, None)
    if not target.exists():
        assert writer("synth", target)["error"] is None
    verify(target)
    assert os.listdir(home) == ["planted"] or not killed
    shutil.rmtree(target)
    return killed


def test_synth_killed_before_any_step(writer: Writer, home: Path) -> None:
    step = 1
    while try_planting(writer, home, step=step):
        step += 1
    assert step - 1 == PLANTING_STEPS


def test_synth_killed_at_any_moment(writer: Writer, home: Path) -> None:
    whole = writer("synth", home / "planted")
    shutil.rmtree(home / "planted")
    assert sum([try_planting(writer, home, delay=delay) for delay in moments(whole["seconds"])]) > KILLS / 2


@pytest.fixture
def trained(writer: Writer, tiny_store: Store, tmp_path: Path) -> tuple[str, float]:
    """The digest of the predictor that training writes, and how long that takes."""
    store = Path(shutil.copytree(tiny_store.path, tmp_path / "trained"))
    seconds = writer("train", store)["seconds"]
    return contents(store)[PREDICTOR], seconds


def try_training(writer: Writer, old: Path, home: Path, trained: str, **when: Any) -> bool:
    """Kill `train-predictor` on a copy of `old`. Returns whether it was killed."""
    store, before = Path(shutil.copytree(old, home / "store")), contents(old)
    killed = writer("train", store, **when)["killed"]
    verify(store)
    after = {name: digest for name, digest in contents(store).items() if not name.startswith(".")}
    assert after == before | {PREDICTOR: after[PREDICTOR]}
    assert after[PREDICTOR] in ({before[PREDICTOR], trained} if killed else {trained})
    assert writer("save", store / PREDICTOR, source=old)["error"] is None
    assert contents(store).keys() == before.keys()
    assert os.listdir(home) == ["store"]
    shutil.rmtree(store)
    return killed


@pytest.mark.slow
def test_training_killed_before_any_step(
    writer: Writer, tiny_store: Store, home: Path, trained: tuple[str, float]
) -> None:
    step = 1
    while try_training(writer, tiny_store.path, home, trained[0], step=step):
        step += 1
    assert step - 1 == TRAINING_STEPS


@pytest.mark.slow
def test_training_killed_at_any_moment(
    writer: Writer, tiny_store: Store, home: Path, trained: tuple[str, float]
) -> None:
    killed = [try_training(writer, tiny_store.path, home, trained[0], delay=d) for d in moments(trained[1])]
    assert sum(killed) > KILLS / 2


# What the dead left


def test_a_store_that_was_moved_away_comes_back(tiny_checkpoint: Path, tiny_store: Store, home: Path) -> None:
    shutil.copytree(tiny_store.path, home / f".store.old-{DEAD}-0")
    (home / f".store.writing-{DEAD}-1").mkdir()
    with pytest.raises(StoreError, match="store exists already"):
        flashlite.pack(tiny_checkpoint, home / "store", "bf16")
    assert contents(home / "store") == contents(tiny_store.path)
    assert os.listdir(home) == ["store"]


def test_a_store_that_was_replaced_does_not_come_back(tiny_checkpoint: Path, tiny_store: Store, home: Path) -> None:
    shutil.copytree(tiny_store.path, home / "store")
    shutil.copytree(tiny_store.path, home / f".store.old-{DEAD}-0")
    flashlite.pack(tiny_checkpoint, home / "store", "bf16", replace=True)
    assert verify(home / "store").dtype_name == "bf16"
    assert os.listdir(home) == ["store"]


@pytest.mark.parametrize("kind", ["writing", "old"])
@pytest.mark.parametrize(
    ("owner", "stays"),
    [(f"{os.getppid()}-0", True), (f"{os.getpid()}-999", False), (f"{DEAD}", False), (f"{DEAD}-3", False),
     ("abc", True), ("", True), ("9" * 30, True)],
    ids=["running", "another-thread", "dead", "dead-thread", "word", "empty", "huge"],
)  # fmt: skip
def test_only_what_dead_writers_left_goes(kind: str, owner: str, stays: bool, home: Path) -> None:
    (home / "a[b]*").touch()
    left = home / f".a[b]*.{kind}-{owner}"
    other = home / f".a[b]**.{kind}-{DEAD}"
    for path in (left, other):
        path.touch()
    write_file(home / "a[b]*", "new")
    assert left.exists() == stays
    assert other.exists(), "it belongs to another name"
    assert (home / "a[b]*").read_text() == "new"


def test_what_another_users_process_writes_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    left = home / f".file.writing-{DEAD}-0"
    left.touch()
    monkeypatch.setattr(atomic.os, "kill", refuse)
    write_file(home / "file", "new")
    assert left.exists()


def test_what_this_process_writes_is_left_alone(home: Path) -> None:
    def write_another() -> None:
        with new_folder(home / "store") as other:
            assert sorted(home.iterdir()) == sorted([one, other])
            one.rename(home / "store")  # as another process may, meanwhile

    with new_folder(home / "store") as one:
        (one / "file").touch()
        with pytest.raises(StoreError, match="exists already"):
            write_another()
        (home / "store").rename(one)
    assert os.listdir(home) == ["store"]


def test_a_name_that_is_taken_is_refused_before_anything_is_written(home: Path) -> None:
    (home / "store").mkdir()
    written: list[Path] = []
    with pytest.raises(StoreError, match="exists already"), new_folder(home / "store") as unfinished:
        written.append(unfinished)
    assert not written


def test_a_file_keeps_its_content_until_the_new_one_is_complete(home: Path) -> None:
    write_file(home / "file", "old")
    with contextlib.suppress(KeyboardInterrupt), new_file(home / "file") as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert (home / "file").read_text() == "old"
    assert os.listdir(home) == ["file"]


def test_a_file_is_replaced_and_not_written_over(home: Path) -> None:
    """Whoever has it open reads on."""
    write_file(home / "file", "old")
    with (home / "file").open() as opened:
        write_file(home / "file", "new")
        assert opened.read() == "old"
    assert (home / "file").read_text() == "new"


@pytest.mark.parametrize("swaps", SWAPS)
def test_a_link_that_is_replaced_goes_and_what_it_leads_to_stays(
    swaps: bool, tiny_checkpoint: Path, tiny_store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swaps:
        monkeypatch.setattr(atomic, "_swapped", lambda one, other: False)
    shutil.copytree(tiny_store.path, home / "other")
    (home / "store").symlink_to("other")
    flashlite.pack(tiny_checkpoint, home / "store", "bf16", replace=True)
    assert verify(home / "store").dtype_name == "bf16"
    assert contents(home / "other") == contents(tiny_store.path)
    assert sorted(os.listdir(home)) == ["other", "store"]


def test_a_store_comes_back_if_its_successor_cannot_take_its_place(
    tiny_checkpoint: Path, tiny_store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_store.path, home / "store")
    rename, calls = Path.rename, []

    def fails_once_the_old_is_away(self: Path, target: Path) -> Path:
        if Path(target) == home / "store" and ".writing-" in self.name:
            calls.append(self)
            if len(calls) == 2:
                raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(atomic, "_swapped", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", fails_once_the_old_is_away)
    with pytest.raises(StoreError, match="store cannot be written: Input/output error"):
        flashlite.pack(tiny_checkpoint, home / "store", "bf16", replace=True)
    assert len(calls) == 2
    assert contents(home / "store") == contents(tiny_store.path)
    assert os.listdir(home) == ["store"]
    assert not atomic._in_use


# Two at once


@pytest.mark.parametrize("swaps", SWAPS)
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_two_pack_to_the_same_place(
    replace: bool, exists: bool, swaps: bool, writers: tuple[Writer, Writer], tiny_checkpoint: Path,
    tiny_store: Store, home: Path,
) -> None:  # fmt: skip
    for _ in range(5):
        if exists:
            shutil.copytree(tiny_store.path, home / "store")
        for writer, dtype in zip(writers, ("bf16", "fp16"), strict=True):
            options = {"dtype": dtype, "replace": replace}
            writer.begin("pack", home / "store", source=tiny_checkpoint, options=options, swaps=swaps)
        errors = [writer.end()["error"] for writer in writers]
        refused = [error for error in errors if error is not None]
        assert len(refused) == (0 if replace else 2 if exists else 1)
        assert all("store exists already: choose another name, or replace it with --force" in e for e in refused)
        dtype = verify(home / "store").dtype_name
        if exists and not replace:
            assert contents(home / "store") == contents(tiny_store.path)
        else:
            assert errors[("bf16", "fp16").index(dtype)] is None
        assert os.listdir(home) == ["store"]
        shutil.rmtree(home / "store")


def test_two_load_the_same_checkpoint(writers: tuple[Writer, Writer], tiny_checkpoint: Path, home: Path) -> None:
    for _ in range(5):
        for writer in writers:
            writer.begin("open", home, source=tiny_checkpoint)
        assert [writer.end()["error"] for writer in writers] == [None, None]
        (packed,) = (home / "stores").iterdir()
        verify(packed)
        shutil.rmtree(packed)


# No room, no permission


@pytest.mark.parametrize("largest", [0, 1, 4095, 4096, 10_000, 13_311, 100_000, 300_000, 397_311])
@pytest.mark.parametrize("replace", [False, True])
def test_pack_to_a_drive_without_room(
    largest: int, replace: bool, writer: Writer, tiny_checkpoint: Path, tiny_store: Store, home: Path
) -> None:
    if replace:
        shutil.copytree(tiny_store.path, home / "store")
    answer = writer(
        "pack", home / "store", source=tiny_checkpoint, options={"replace": replace}, largest=largest
    )  # fmt: skip
    assert answer["error"] == f"{home / 'store'} cannot be written: File too large"
    assert os.listdir(home) == (["store"] if replace else [])
    assert not replace or contents(home / "store") == contents(tiny_store.path)


@pytest.mark.parametrize("largest", [0, 1, 4096, 20_000])
def test_predictor_to_a_drive_without_room(largest: int, writer: Writer, tiny_store: Store, home: Path) -> None:
    store = Path(shutil.copytree(tiny_store.path, home / "store"))
    answer = writer("save", store / PREDICTOR, source=store, largest=largest)
    assert answer["error"].startswith(f"{store / PREDICTOR} cannot be written: ")
    assert contents(store) == contents(tiny_store.path)


@pytest.mark.parametrize("size", ["16k", "128k", "512k"])
def test_pack_to_a_full_drive(size: str, tiny_checkpoint: Path, home: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", home], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small drive")
    try:
        with pytest.raises(StoreError, match=r"store cannot be written: No space left on device$"):
            flashlite.pack(tiny_checkpoint, home / "store")
        assert os.listdir(home) == []
    finally:
        subprocess.run(["umount", home], check=True)


@pytest.fixture
def frozen(tiny_store: Store, home: Path) -> Iterator[Path]:
    """A folder that holds a store, and in which nobody may write, root included."""
    store = Path(shutil.copytree(tiny_store.path, home / "store"))
    folders = [store, home]
    if os.geteuid() == 0 and shutil.which("chattr") is None:
        pytest.skip("nothing here keeps root from writing")
    if os.geteuid() == 0:
        done = [subprocess.run(["chattr", "+i", folder], capture_output=True).returncode for folder in folders]
        if any(done):
            pytest.skip("this file system can't keep root from writing")
    else:
        for folder in folders:
            folder.chmod(0o555)
    yield home
    for folder in reversed(folders):
        if os.geteuid() == 0:
            subprocess.run(["chattr", "-i", folder], check=True)
        else:
            folder.chmod(0o755)


def test_writing_where_nobody_may(frozen: Path, tiny_checkpoint: Path, tiny_store: Store) -> None:
    store, before = Store(frozen / "store"), contents(tiny_store.path)
    for target, replace in (("store", True), ("new", False)):
        with pytest.raises(StoreError, match=f"{target} cannot be written: (Operation not|Permission)"):
            flashlite.pack(tiny_checkpoint, frozen / target, replace=replace)
    predictors = PredictorSet.load(store)
    with pytest.raises(PredictorError, match="cannot be written"):
        predictors.save(store.path / PREDICTOR)
    verify(frozen / "store")
    assert contents(frozen / "store") == before
    assert os.listdir(frozen) == ["store"]
