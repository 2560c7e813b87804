"""The lines that stand around a table of the ladder: machine, drive, dense model, memory, and whether to trust it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashlite.bench.tables.table import BAD, GOOD, NEARLY, number

if TYPE_CHECKING:  # so that tables need no torch
    from flashlite.bench.machine import Ceiling
    from flashlite.bench.result import Result
    from flashlite.bench.row import MeasuredStage

LEGEND = (
    f"same tokens: {GOOD} with the oracle predictor they are the dense model's, {BAD} they are not; %: how many of "
    f"them the predictor gives too, {NEARLY} not all"
)


def summary_lines(result: Result) -> list[str]:
    """What was measured, whether its times can be trusted, and then the machine, the dense model and the memory."""
    host, ceiling = result.host, result.ceiling
    return [
        f"{result.title} {result.dtype}, {_mb(result.weight_bytes)} of weights, budget {_mb(result.budget_bytes)} "
        f"({result.budget_share:.0%}), {result.new_tokens} tokens after a prompt of {result.prompt_tokens}",
        *_warning(result),
        f"{host.processor}, {host.cores} cores, {host.memory_bytes / 2**30:.0f} GiB; drive {result.drive.device}: "
        f"{ceiling.random_mb_s:.0f} MB/s in random reads of {ceiling.record_bytes} bytes, {ceiling.depth} in flight, "
        f"{ceiling.sequential_mb_s:.0f} MB/s sequential",
        _dense_line(result),
        *_device_lines(result),
        *([_memory_line(result)] if result.device == "cpu" else []),
        *[_work_line(stage, ceiling) for stage in result.stages if stage.name == "pool" and result.device == "cpu"],
        *[_ahead_line(stage) for stage in result.stages if stage.prefetched_bytes],
        *_cap_lines(result),
    ]


def _dense_line(result: Result) -> str:
    """What stages are compared with, and its time."""
    dense = result.dense
    cost = f"{number(dense.total_ms)} ms a token in {_mb(dense.dram_bytes)}"
    if dense.streamed:
        return f"the dense model doesn't fit this machine, and stages are compared with naive loading: {cost}"
    return f"dense, all weights in {result.memory}: {cost}"


def _mb(nbytes: float) -> str:
    return f"{number(nbytes / 1e6)} MB"


def _warning(result: Result) -> list[str]:
    """One line if something else kept the machine busy, none if not."""
    signs = result.disturbance.signs if result.disturbance else []
    return [f"{BAD} these times are not to be trusted: {', '.join(signs)}"] if signs else []


def _memory_line(result: Result) -> str:
    """The most that a process had in memory, and why that may be more than the cap."""
    base, most = result.base, max(stage.peak_rss_bytes for stage in result.stages)
    line = (
        f"peak RSS {'never passes' if most <= result.budget_bytes + base.total else 'PASSES'} budget plus a base of "
        f"{_mb(base.total)}: libraries {_mb(base.libraries)}, KV cache {_mb(base.kv_cache)}, activations and "
        f"allocator {_mb(base.work)}"
    )
    if result.memory_cap.bytes is None or most <= result.memory_cap.bytes:
        return line
    return (
        f"{line}; it is above the memory cap because RSS counts the libraries' pages that other processes have in "
        "memory as well, which the cap counts to the process that read them first"
    )


def _device_lines(result: Result) -> list[str]:
    """What ran on which device, and the memory of the device and of the host; none where there is no device."""
    if result.device == "cpu":
        return []
    name = f"{result.gpu.name}, {result.gpu.memory_bytes / 2**30:.0f} GiB" if result.gpu else "the CPU, taken for one"
    host, grown = (max(stage.host_bytes for stage in result.stages), max(map(_grown, result.stages)))
    bus = max(stage.bus_bytes_a_second or 0.0 for stage in result.stages)
    line = f"device {result.device}: {name}; copies to it reach {number(bus / 1e6)} MB/s"
    most = max(stage.device_peak_bytes or 0 for stage in result.stages)
    return [
        line,
        *([f"at most {_mb(most)} of the device's memory were in use"] if most else []),
        f"on the host, buffers beside the budget take {_mb(host)}; processes grew by at most {_mb(grown)}",
    ]


def _grown(stage: MeasuredStage) -> int:
    """Bytes of the host's memory that loading and running a model took."""
    return stage.peak_rss_bytes - stage.base_rss_bytes


def _work_line(stage: MeasuredStage, ceiling: Ceiling) -> str:
    """How much of a token is the work that it must be: reads, and products with weights, attention's and the head's."""
    work = stage.io_ms + stage.product_ms + stage.linear_ms
    return (
        f"stage {stage.stage} waits for flash or multiplies weights for {work / stage.total_ms:.0%} of a token, and "
        f"manages memory for {stage.memory_ms / stage.total_ms:.1%}; its reads reach "
        f"{stage.read_mb_s / ceiling.random_mb_s:.0%} of the drive's random reads"
    )


def _ahead_line(stage: MeasuredStage) -> str:
    return (
        f"stage {stage.stage} reads {_mb(stage.prefetched_bytes)} of a token ahead of the layer that needs it, "
        f"{stage.wasted_bytes / stage.prefetched_bytes:.0%} of that for nothing"
    )


def _cap_lines(result: Result) -> list[str]:
    """What the cap was and whether it meant something, none where no cap was asked for."""
    cap, on_device = result.memory_cap, result.device != "cpu"
    if cap.bytes is None or cap.base_bytes is None:
        return []
    size = f"memory cap of {_mb(cap.bytes)}, the budget and {_mb(cap.base_bytes)} for the process"
    if not cap.enforced:
        reason = "the device is not a GPU" if on_device else "the system grants no control group here"
        return [f"{size}: NOT enforced, because {reason}"]
    most = f"; at most {_mb(cap.peak_bytes)} were used" if cap.peak_bytes else ""
    states = {True: "runs as well", False: "is killed", None: "was not tried"}
    dense = f"under it the dense model {states[cap.dense_fits]}"
    cache = "" if on_device else ", page cache included"
    return [f"{size}{cache}, enforced by {cap.how}{most}; {dense}"]
