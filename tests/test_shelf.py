"""`flashlite stores`: what is in the cache is listed as it is, and nothing else than what is named is ever removed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import add_predictor, call
from transformers import OPTForCausalLM

from flashlite.arguments import MANIFEST
from flashlite.errors import StoreError
from flashlite.storage import atomic, shelf
from flashlite.storage.find import open_model
from flashlite.storage.store import PREDICTOR

OTHER = os.getppid()  # a process that runs, and isn't this one
GONE = 2**22 + 1  # more than Linux numbers processes


@pytest.fixture
def stores(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder, with one packed model in it."""
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    return open_model(tiny_checkpoint).path.parent


@pytest.fixture
def name(stores: Path) -> str:
    """What this model is called there."""
    return os.listdir(stores)[0]


def on_the_drive(folder: Path) -> int:
    """Bytes that the files of a folder take on the drive."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr("flashlite.cli.options.screen.width", 200, raising=False)
    code, out, _ = call(monkeypatch, capsys, "stores")
    assert code == 0
    return out


def test_an_empty_cache_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path / "home"))
    assert listed(monkeypatch, capsys) == f"no packed models in {tmp_path / 'home' / 'stores'}\n"
    assert not (tmp_path / "home").exists()


def test_each_store_is_told_with_its_size_and_its_predictor(
    stores: Path, name: str, tiny_checkpoint: Path, tiny_model: OPTForCausalLM, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    trained = open_model(tiny_checkpoint, "bf16")
    add_predictor(open_model(tiny_checkpoint), tiny_model)
    first, second = sorted(shelf.entries(), key=lambda entry: entry.dtype)
    assert (first.name, first.dtype, first.predictor, first.notes) == (trained.path.name, "bf16", False, ())
    assert (second.name, second.dtype, second.predictor, second.notes) == (name, "fp32", True, ())
    assert (first.nbytes, second.nbytes) == (on_the_drive(trained.path), on_the_drive(stores / name))
    assert second.made == (stores / name / MANIFEST).stat().st_mtime
    out = listed(monkeypatch, capsys)
    row = next(line for line in out.splitlines() if name in line).split()
    assert row[0:3] == [name, "fp32", f"{second.nbytes / 1e6:.1f}"]
    assert row[-1] == "trained"
    assert out.splitlines()[-1] == f"2 in {stores}, {(first.nbytes + second.nbytes) / 1e6:.1f} MB"


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        ({"planted": {"seed": 0}}, ("planted",)),
        ({"packed_by": "ex04.py"}, ("packed by ex04.py",)),
        ({"format": 99}, ()),
    ],
)
def test_what_a_manifest_says_is_told_whatever_its_format(
    changes: dict[str, object], notes: tuple[str, ...], stores: Path, name: str
) -> None:
    manifest = json.loads((stores / name / MANIFEST).read_text())
    (stores / name / MANIFEST).write_text(json.dumps(manifest | changes))
    (entry,) = shelf.entries()
    assert (entry.dtype, entry.notes) == ("fp32", notes)


def test_what_is_no_sound_store_is_listed_too(stores: Path, name: str) -> None:
    (stores / name / MANIFEST).write_text("{")
    (stores / "folder").mkdir()
    assert {entry.name: entry.notes for entry in shelf.entries()} == {
        name: ("its manifest is damaged",), "folder": ("not a store",),
    }  # fmt: skip


def test_a_store_is_removed_by_its_name(
    stores: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(stores / name, stores / "other")
    code, out, _ = call(monkeypatch, capsys, "stores", "--remove", name, "--yes")
    assert (code, out.split()[:3]) == (0, [name, "is", "removed:"])
    assert os.listdir(stores) == ["other"]


def test_without_a_terminal_nothing_is_removed_unasked(
    stores: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    code, out, err = call(monkeypatch, capsys, "stores", "--remove", name)
    assert (code, out) == (1, "")
    assert err == "flashlite: there is no terminal at which --remove could ask: remove without asking by --yes\n"
    assert os.listdir(stores) == [name]


@pytest.mark.parametrize("answer", [True, False])
def test_at_a_terminal_it_asks(
    answer: bool, stores: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def confirm(text: str, err: bool) -> bool:
        asked.append(text)
        return answer

    monkeypatch.setattr("typer.confirm", confirm)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    size = f"{on_the_drive(stores / name) / 1e6:.1f} MB"
    code, out, _ = call(monkeypatch, capsys, "stores", "--remove", name)
    assert asked == [f"remove {name}, {size}?"]
    assert (code, out) == (0, f"{name} is removed: {size}\n" if answer else f"{name} stays\n")
    assert os.listdir(stores) == ([] if answer else [name])


def test_one_wrong_name_and_nothing_is_removed(
    stores: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(monkeypatch, capsys, "stores", "--yes", "--remove", name, "--remove", "other")
    assert (code, err.splitlines()) == (
        1, [f"flashlite: there is nothing called 'other' in {stores}: `flashlite stores` lists what there is"],
    )  # fmt: skip
    assert os.listdir(stores) == [name]


# What packs leave


@pytest.mark.parametrize("kind", ["writing", "old"])
def test_what_a_dead_pack_left_is_told_and_can_be_removed(kind: str, stores: Path, name: str) -> None:
    left = stores / f".{name}.{kind}-{GONE}-0"
    shutil.copytree(stores / name, left)
    hidden, store = shelf.entries()
    assert (hidden.name, hidden.notes) == (left.name, ("left by a pack that was broken off",))
    assert store.notes == ()
    shelf.remove(hidden)
    assert os.listdir(stores) == [name]


@pytest.mark.parametrize(
    "place", [".{name}.writing-{pid}-0", ".{name}.old-{pid}-3", "{name}/.predictor.writing-{pid}-0"]
)
def test_what_is_being_written_is_never_removed(
    place: str, stores: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = stores / place.format(name=name, pid=OTHER)
    hidden.mkdir()
    for entry in shelf.entries():
        assert entry.notes[0] == f"being written by process {OTHER}"
        code, _, err = call(monkeypatch, capsys, "stores", "--yes", "--remove", entry.name)
        assert code == 1
        assert err == f"flashlite: {entry.name} is being written by process {OTHER}: wait for it, or end it first\n"
    assert hidden.is_dir()
    assert (stores / name / MANIFEST).is_file()


def test_what_this_process_writes_is_not_removed_either(stores: Path, name: str) -> None:
    with atomic.new_folder(stores / name, replace=True) as unfinished:
        hidden, store = shelf.entries()
        for entry in (hidden, store):
            with pytest.raises(StoreError, match=f"is being written by process {os.getpid()}"):
                shelf.remove(entry)
        assert unfinished.is_dir()
    assert [entry.notes for entry in shelf.entries()] == [("not a store",)]


def test_another_stores_writer_is_not_this_ones(stores: Path, name: str) -> None:
    (stores / f".{name}.more.writing-{OTHER}-0").mkdir()
    assert [entry.notes for entry in shelf.entries() if entry.name == name] == [()]


def test_a_removal_that_is_broken_off_leaves_no_half_store(
    stores: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> None:
        (path / PREDICTOR).unlink(missing_ok=True)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", broken)
    with pytest.raises(StoreError, match=f"{name} cannot be removed: Permission denied"):
        shelf.remove(shelf.find(name))
    (entry,) = shelf.entries()
    assert entry.notes == ("left by a pack that was broken off",)
    monkeypatch.undo()
    atomic.clear_up(stores / name)
    assert os.listdir(stores) == []


# Links, and names that lead elsewhere


def test_no_link_is_followed(stores: Path, name: str, tmp_path: Path) -> None:
    outside = Path(shutil.copytree(stores / name, tmp_path / "outside"))
    (stores / "link").symlink_to(outside)
    (stores / "nowhere").symlink_to(tmp_path / "nothing")
    (stores / name / "inside").symlink_to(outside)
    assert {entry.name: (entry.nbytes, entry.notes) for entry in shelf.entries()} == {
        "link": (0, ("a link, which isn't followed",)), "nowhere": (0, ("a link, which isn't followed",)),
        name: (on_the_drive(outside), ()),
    }  # fmt: skip
    for entry in shelf.entries():
        shelf.remove(entry)
    assert os.listdir(stores) == []
    assert open_model(outside).path == outside
    open_model(outside).verify()


@pytest.mark.parametrize("named", ["..", ".", "", "../stores", "{name}/manifest.json", "{stores}/{name}", "{name}/"])
def test_only_names_in_the_list_are_removed(named: str, stores: Path, name: str) -> None:
    with pytest.raises(StoreError, match="there is nothing called"):
        shelf.find(named.format(name=name, stores=stores))
