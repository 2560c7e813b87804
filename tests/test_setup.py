"""Setting up and installing: `make` on machines that lack something, and the library without the course's packages."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import set_up
from conftest import ROOT

OLD = "import sys\nsys.version_info = (3, 9, 6, 'final', 0)\n"  # what a real Python says of itself when it starts
NO_VENV = "import sys\nsys.modules['ensurepip'] = None\n"


def fake_python(folder: Path, pretends: str) -> Path:
    """A Python that runs some code before anything else."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(pretends)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def make(
    folder: Path, python: object, target: str = ".venv/ready", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run make in a folder that holds what it needs to set an environment up, as if no other make had started it."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "tools"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return subprocess.run(
        ["make", target, f"PYTHON={python}"], cwd=folder, capture_output=True, text=True, check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))} | variables,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("pretends", "words"),
    [
        (OLD, "make: flashlite needs Python 3.10 or newer, this is 3.9: "),
        (NO_VENV, "can't make environments: install its venv (on Debian and Ubuntu `sudo apt install python3-venv`)"),
    ],
    ids=["old", "without venv"],
)
def test_a_python_that_cannot_do_it_is_named_in_one_line(pretends: str, words: str, tmp_path: Path) -> None:
    done = make(tmp_path, fake_python(tmp_path / "fake", pretends))
    line, *rest = done.stderr.splitlines()
    assert done.returncode == 2
    assert words in line
    assert "make PYTHON=python3." in line
    assert [end for end in rest if not end.startswith("make: *** ")] == []
    assert not (tmp_path / ".venv").exists()


def test_no_python_at_all_is_one_line(tmp_path: Path) -> None:
    done = make(tmp_path, "no-such-python -3")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("make: there is no no-such-python: install Python 3.10 or newer")


def test_a_newer_python_that_is_there_is_named(tmp_path: Path) -> None:
    newer = tmp_path / "python3.12"
    newer.symlink_to(sys.executable)
    done = make(tmp_path, fake_python(tmp_path / "fake", OLD), PATH=f"{tmp_path}:/usr/bin:/bin")
    assert "this is 3.9: write make PYTHON=python3.1" in done.stderr
    assert "PYTHON=python3.9" not in done.stderr


def test_an_old_python_can_read_the_set_up() -> None:
    ast.parse((ROOT / "tools/set_up.py").read_text(), feature_version=(3, 6))


def test_pip_is_told_only_where_packages_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "TARGET", "PREFIX", "ROOT", "REQUIRE_VIRTUALENV", "NO_DEPS", "DRY_RUN", "PYTHON", "QUIET"):
        monkeypatch.setenv(f"PIP_{name}", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "somewhere")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    seen = set_up.environment()
    assert {name for name in seen if name.startswith("PIP_")} >= {"PIP_INDEX_URL", "PIP_USER"}
    assert (seen["PIP_INDEX_URL"], seen["PIP_USER"]) == ("somewhere", "0")
    lost = {"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIRE_VIRTUALENV", "PIP_NO_DEPS", "PIP_PYTHON", "PYTHONPATH"}
    assert lost.isdisjoint(seen)


def fake_pip(folder: Path, says: str, code: int = 0) -> None:
    """An environment whose Python is sound, and only says something when it is to install."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    python = folder / "bin/python"
    python.unlink(missing_ok=True)
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec "{sys.executable}" "$@"\necho "$@" > {folder}/asked\n'
        f'printf "%b" "{says}"\nexit {code}\n'
    )
    python.chmod(0o755)


def test_a_set_up_says_how_far_it_is(tmp_path: Path) -> None:
    fake_pip(
        tmp_path / ".venv",
        "Collecting torch\\n  Downloading torch-2.13.0-cp312.whl (812.3 MB)\\n  Downloading six-1.whl (11 kB)\\n"
        "  Downloading numpy-2.4.6-cp312.whl (16.7 MB)\\nInstalling collected packages: a, b, c\\n",
    )
    done = make(tmp_path, sys.executable)
    assert (done.returncode, done.stderr) == (0, "")
    steps = done.stdout.splitlines()
    assert [step[:18] for step in steps if "step" in step] == [f"make: step {i} of 3:" for i in (1, 2, 3)]
    assert steps[0] == "make: step 1 of 3: the environment in .venv is there"
    assert "make:   torch, 812 MB, after 0 MB" in steps
    assert "make:   numpy, 17 MB, after 812 MB" in steps
    assert steps[-1].endswith("packages: 3")
    assert "[course,dev]" in (tmp_path / ".venv/asked").read_text()
    assert make(tmp_path, sys.executable).stdout.strip() == "make: '.venv/ready' is up to date."


def test_what_builds_the_site_is_added_to_the_environment(tmp_path: Path) -> None:
    fake_pip(tmp_path / ".venv", "Installing collected packages: sphinx, furo\\n")
    make(tmp_path, sys.executable)
    done = make(tmp_path, sys.executable, target=".venv/site")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "make: installing; packages: 2"
    assert "[site]" in (tmp_path / ".venv/asked").read_text()
    assert make(tmp_path, sys.executable, target=".venv/site").stdout.strip() == "make: '.venv/site' is up to date."


def test_what_pip_says_last_is_shown_if_it_fails_and_make_goes_on_from_there(tmp_path: Path) -> None:
    fake_pip(tmp_path / ".venv", "ERROR: No matching distribution\\n", code=1)
    done = make(tmp_path, sys.executable)
    said, line = done.stderr.splitlines()[:2]
    assert done.returncode == 2
    assert said == "ERROR: No matching distribution"
    assert line.startswith("make: pip could not install everything")
    assert not (tmp_path / ".venv/ready").exists()
    fake_pip(tmp_path / ".venv", "all is there\\n")
    assert "step 1 of 3: the environment in .venv is there" in make(tmp_path, sys.executable).stdout
    assert (tmp_path / ".venv/ready").exists()


def test_an_environment_that_was_interrupted_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / ".venv"
    assert not set_up.is_sound(folder)
    (folder / "bin").mkdir(parents=True)
    for broken in ("#!/bin/sh\nexit 1\n", "#!/bin/sh\necho False\n", "#"):  # without pip, of another Python, cut off
        (folder / "bin/python").write_text(broken)
        (folder / "bin/python").chmod(0o755)
        assert not set_up.is_sound(folder)
    set_up.make_environment(folder)
    assert set_up.is_sound(folder)


def test_a_folder_that_holds_the_clone_does_not_hide_the_package(tmp_path: Path) -> None:
    clone = tmp_path / "flashlite"
    (clone / "flashlite").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (clone / name).symlink_to(ROOT / name)
    for name in ("__init__.py", "version.py"):
        (clone / "flashlite" / name).write_text((ROOT / "flashlite" / name).read_text())
    build = f"import setuptools.build_meta as build; build.build_editable({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=clone, capture_output=True, check=True)
    installed = tmp_path / "site"
    with zipfile.ZipFile(next(tmp_path.glob("flashlite_course-*.whl"))) as wheel:
        wheel.extractall(installed)
    ask = f"import site; site.addsitedir({str(installed)!r}); import flashlite; print(flashlite.__version__)"
    done = subprocess.run(  # -I: with nothing else of flashlite on the path; the folder is then put first
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, ''); {ask}"], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "0.2.0", done.stderr


LIBRARY_ALONE = """
import sys
for name in ("matplotlib", "pytest", "_pytest", "IPython", "jupyter", "hypothesis", "accelerate", "tomli", "execnet"):
    sys.modules[name] = None
from flashlite.cli.main import main
sys.argv = ["flashlite", *sys.argv[1:]]
main()
"""


def alone(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line where only the library's own packages can be imported."""
    return subprocess.run(
        [sys.executable, "-c", LIBRARY_ALONE, *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
        check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.slow
def test_the_library_runs_without_the_packages_of_the_course(tmp_path: Path) -> None:
    assert alone("--version", cwd=tmp_path).stdout == "flashlite 0.2.0\n"
    done = alone("estimate", "opt-125m", "--drive", "870", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no plot at .flashlite/estimate.png: it needs matplotlib: pip install matplotlib" in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = alone("pack", "opt-mini", "store", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = alone("run", "store", "--max-new-tokens", 4, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("probe", "--plot", "a.png"), "flashlite: --plot a.png needs matplotlib: pip install matplotlib"),
        (("grade", "3"), "flashlite: grading needs pytest: pip install pytest"),
    ],
)
def test_what_needs_them_is_one_line(arguments: tuple[str, ...], line: str) -> None:
    done = alone(*arguments, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line + "\n")
