"""What a measuring process says of a device's memory, and the limit that it sets itself there."""

from __future__ import annotations

import torch

from flashlite.bench.row import DeviceInfo


def device_info(device: torch.device) -> DeviceInfo | None:
    """A device's name and size; None for the CPU."""
    if device.type != "cuda":
        return None
    return DeviceInfo(torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory)


def limit(device: torch.device, nbytes: int | None) -> None:
    """Let this process take at most so many bytes of the device's memory. None, or the CPU: no limit."""
    if nbytes is not None and (info := device_info(device)) is not None:
        torch.cuda.set_per_process_memory_fraction(min(1.0, nbytes / info.memory_bytes), device)


def forget_device_peak(device: torch.device) -> None:
    """Give back memory that torch keeps without use, and count the highest use anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def device_peak(device: torch.device, reserved: bool = False) -> int | None:
    """The most bytes of the device that were in use, or with `reserved` those that torch held; None for the CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_reserved(device) if reserved else torch.cuda.max_memory_allocated(device)


def wait_for(device: torch.device) -> None:
    """Wait until a device has computed all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
