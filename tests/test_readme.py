"""Every command and every snippet that the README shows works in a clone."""

from __future__ import annotations

import glob
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from conftest import ROOT, add_predictor, call, save_checkpoint
from transformers import OPTForCausalLM

import flashlite
from flashlite.cli.main import app

RUN = {"run", "stores", "contest", "verify", "hint", "progress", "eval"}  # commands that are run as shown
# these take minutes, or a network
PARSED = {"probe", "bench", "estimate", "pack", "card", "calibrate", "synth", "train-predictor", "relufy", "grade"}


def blocks(language: str, file: str = "README.md") -> list[str]:
    """What a file shows in code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / file).read_text(), re.M | re.S)


def commands(file: str = "README.md") -> list[list[str]]:
    """The command lines in a file's code blocks, in words; of CONTRIBUTING.md those that need no container."""
    lines = [line for block in blocks("sh", file) for line in block.splitlines()]
    if file != "README.md":
        lines = [line for line in lines if line.startswith(("flashlite ", "make ", "python "))]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


FLASHLITE = [line[1:] for line in commands() if line[0] == "flashlite"]


@pytest.fixture(scope="module")
def clone(tiny_model: OPTForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone, with what earlier commands of the README have made, but smaller."""
    folder = tmp_path_factory.mktemp("readme")
    for path in ROOT.iterdir():
        if not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    store = flashlite.pack(save_checkpoint(tiny_model, folder / "checkpoint"), folder / "my-store")
    add_predictor(store, tiny_model)
    (folder / "class/ada").mkdir(parents=True)
    return folder


def expanded(words: list[str], folder: Path) -> list[str]:
    """Words as a shell hands them over: each pattern becomes the files that it matches, of which there must be some."""
    result = []
    for word in words:
        found = sorted(glob.glob(word, root_dir=folder)) if set(word) & set("*?[") else [word]
        assert found, f"no file matches {word}"
        result += found
    return result


@pytest.mark.parametrize("words", FLASHLITE, ids=" ".join)
def test_commands_have_the_options_that_are_shown(
    words: list[str], clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, *arguments = expanded(words, clone)
    assert name in RUN | PARSED
    monkeypatch.chdir(clone)
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    with command.make_context(name, arguments) as context:  # which looks at every argument and begins nothing
        assert context.command is command


@pytest.mark.parametrize("words", [line for line in FLASHLITE if line[0] in RUN], ids=" ".join)
def test_commands_run_as_shown(
    words: list[str], clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    monkeypatch.chdir(clone)
    monkeypatch.setenv("FLASHLITE_HOME", str(tmp_path_factory.getbasetemp() / "readme-home"))
    fewer = ["--tokens", "1024"] if words[0] == "eval" else []  # of a text that takes a minute
    code, out, err = call(monkeypatch, capsys, *expanded(words, clone), *fewer)
    assert code == 0, err
    assert out.strip()


def test_the_readme_shows_every_command() -> None:
    assert {line[0] for line in FLASHLITE} == RUN | PARSED
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert known >= RUN | PARSED


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md"])
def test_other_commands_are_there(file: str, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    for kind, *words in commands(file):
        if kind == "make":
            subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, check=True)
        elif kind == "python":
            assert (ROOT / words[0]).is_file()
        else:
            assert kind == "flashlite"
            typer.main.get_command(app).commands[words[0]].make_context(words[0], words[1:])  # type: ignore[attr-defined]


def test_python_snippets_run_one_after_the_other(tmp_path: Path) -> None:
    snippets = blocks("python")
    assert snippets
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(snippets)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"FLASHLITE_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CallCost(" in done.stdout
    assert "import numpy as np\n" in done.stdout
