"""The drive's curve and the cost model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flashlite.bench.cost import Speeds, Work, bus_speed, device_token_ms, io_ms, token_ms
from flashlite.bench.estimate import Sparsity, count_work
from flashlite.drive.probe import Curve, probe, scratch_file
from flashlite.errors import FlashliteError
from flashlite.storage.bundle import FFNShape

CURVE = Curve("aio", 512, True, (4096, 16384), (1, 32), ((50.0, 400.0), (200.0, 1600.0)), 2000.0)


def test_curve_is_exact_at_measured_points_and_between_them_elsewhere() -> None:
    assert CURVE.rate(4096, 1) == pytest.approx(50e6)
    assert CURVE.rate(16384, 32) == pytest.approx(1600e6)
    assert 400e6 < CURVE.rate(8192, 32) < 1600e6
    assert CURVE.rate(10**6, 500) == pytest.approx(1600e6)


def test_io_depends_on_size_and_on_reads_in_flight() -> None:
    nbytes = 320 * 4096
    assert io_ms(CURVE, 320, nbytes, batches=10) == pytest.approx(1e3 * nbytes / 400e6)
    assert io_ms(CURVE, 320, nbytes, batches=320) == pytest.approx(1e3 * nbytes / 50e6)
    assert io_ms(CURVE, 0, 0, batches=1) == 0


def test_a_token_costs_the_sum_of_its_parts_or_the_larger_where_they_overlap() -> None:
    speeds, curve = Speeds(product=1e9, copy=2e9, rest_ms=3.0), replace(CURVE, batch_ms=0.1)
    serial = Work(reads=320, bytes=320 * 4096, batches=10, copied_bytes=4e6, product_bytes=5e6, overlapped=False)
    io = io_ms(CURVE, 320, 320 * 4096, 10)
    assert token_ms(curve, serial, speeds) == pytest.approx(3 + 2 + io + 5 + 10 * 0.1)
    overlapped, slow = replace(serial, overlapped=True), replace(speeds, rest_ms=0.0, product=1e12)
    assert token_ms(curve, overlapped, speeds) == pytest.approx(2 + (3 + 5) + 10 * 0.1)
    assert token_ms(curve, overlapped, slow) == pytest.approx(2 + io + 10 * 0.1)


def test_on_a_device_what_is_read_crosses_the_bus_too() -> None:
    speeds, curve = Speeds(product=1e9, copy=2e9, rest_ms=3.0), replace(CURVE, batch_ms=0.1)
    for overlapped in (False, True):
        work = Work(320, 320 * 4096, batches=10, copied_bytes=4e6, product_bytes=5e6, overlapped=overlapped)
        assert device_token_ms(curve, work, speeds, bus=1e9) == pytest.approx(
            token_ms(curve, work, speeds) + 1e3 * 320 * 4096 / 1e9
        )
        nothing = replace(work, reads=0.0, bytes=0.0)
        assert device_token_ms(curve, nothing, speeds, bus=1.0) == token_ms(curve, nothing, speeds)


def test_the_bus_to_a_device_has_a_speed() -> None:
    assert bus_speed(torch.device("cpu")) > 0


def test_the_estimate_overlaps_reads_and_computing_at_the_last_stage_alone() -> None:
    works = count_work(FFNShape(2048, 512, 4, 512), 6, 10**6, Sparsity())
    assert [work.overlapped for work in works.values()] == [False] * 6 + [True]


def test_probe_measures_this_drive_and_leaves_nothing(tmp_path: Path) -> None:
    curve = probe(tmp_path, sizes=(4096, 65536), depths=(1, 8), file_bytes=2**25)
    assert np.array(curve.mb_s).shape == (2, 2)
    assert (np.array(curve.mb_s) > 0).all()
    assert curve.sequential_mb_s > 0
    assert Curve.from_json(curve.to_json()) == curve
    assert list(tmp_path.iterdir()) == []


def test_malformed_curve_and_unwritable_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FlashliteError, match="not a curve"):
        Curve.from_json({"sizes": [1]})
    with pytest.raises(FlashliteError, match="cannot be probed"), scratch_file(tmp_path / "missing", 1):
        pass
