"""The memory cap: what it lets through, what it kills, and that it says so where nothing enforces it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flashlite.bench import cap as cap_module
from flashlite.bench.cap import Cap, memory_cap

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
