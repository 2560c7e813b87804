"""Published figures of drives that are not at hand, as curves that the cost model can use.

What is published of a drive is its sequential rate, and how many random reads of 4 KiB it does a second. We assume that
a larger read takes as long as one of 4 KiB with as many in flight, plus the time that the rest of its bytes take at the
sequential rate, and that a smaller read takes as long as one of 4 KiB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashlite.drive.probe import DEPTHS, SIZES, Curve
from flashlite.errors import FlashliteError

BLOCK = 4096  # bytes of the reads that are published


@dataclass(frozen=True)
class Drive:
    """What was published of a drive.

    name, kind: what it is called, and what it is
    sequential_mb_s: large reads in order, in 10^6 bytes a second
    iops: random reads of 4 KiB a second, by how many are in flight; with fewer in flight than the lowest of these, we
        assume proportionally fewer reads
    measured: whether a reviewer measured it; if not, its maker promises it
    source, url: who says so, and where
    """

    name: str
    kind: str
    sequential_mb_s: float
    iops: dict[int, float]
    measured: bool
    source: str
    url: str

    def curve(self) -> Curve:
        """Its throughput by size of reads and reads in flight."""
        rows = tuple(tuple(self._mb_s(size, depth) for depth in DEPTHS) for size in SIZES)
        return Curve("published", BLOCK, True, SIZES, DEPTHS, rows, self.sequential_mb_s)

    def _mb_s(self, size: int, depth: int) -> float:
        depths = sorted(self.iops)
        reads = float(np.interp(np.log(depth), np.log(depths), [self.iops[d] for d in depths]))
        reads *= min(1.0, depth / depths[0])
        microseconds = 1e6 / reads + max(0, size - BLOCK) / self.sequential_mb_s
        return size / microseconds


NOT_STATED = DEPTHS[-1]  # reads in flight of a figure that comes without them
DRIVES = (
    Drive(
        "SD card A2", "SD card", 104, {NOT_STATED: 5000}, False,
        "Raspberry Pi documentation, SD cards: on a Raspberry Pi 5; its bus ends at 104 MB/s",
        "https://github.com/raspberrypi/documentation/blob/bfd5171a80248ac62782a4660a7cbaae02fcc8bb/documentation/asciidoc/accessories/sd-cards/about.adoc",
    ),
    Drive(
        "Samsung 870 EVO 1 TB", "SATA SSD", 560, {1: 13_000, 32: 98_000}, False,
        "KitGuru, Samsung SSD 870 EVO 1TB review, the maker's figures",
        "https://www.kitguru.net/components/ssd-drives/simon-crisp/samsung-ssd-870-evo-1tb-review/all/1/",
    ),
    Drive(
        "Samsung eUFS 3.1 512 GB", "phone, UFS 3.1", 2100, {NOT_STATED: 100_000}, False,
        "CDRinfo, Samsung begins mass production of 512GB eUFS 3.1, the maker's figures",
        "https://cdrinfo.com/d7/content/samsung-begins-mass-production-speedy-512gb-eufs-31-smartphones",
    ),
    Drive(
        "Samsung 970 EVO Plus 1 TB", "NVMe, PCIe 3", 3500, {1: 19_000, 32: 600_000}, False,
        "Digit, Samsung 970 EVO Plus review, the maker's figures",
        "https://digit.in/reviews/general/samsung-970-evo-plus-nvme-m-2-ssd-250-gb-review-177943.html/amp",
    ),
    Drive(
        "Lexar NM790 4 TB", "NVMe, PCIe 4", 7400, {1: 20_176, 4: 87_037, 8: 132_941, 32: 479_318}, True,
        "KitGuru, Lexar NM790 with Heatsink 4TB review, page 11; sequential as the maker says",
        "https://kitguru.net/components/ssd-drives/simon-crisp/lexar-nm790-with-heatsink-4tb-ssd-review/11",
    ),
    Drive(
        "Samsung 9100 PRO 8 TB", "NVMe, PCIe 5", 14_800, {NOT_STATED: 2_200_000}, False,
        "StorageReview, Samsung 9100 Pro 8TB review, the maker's figures",
        "https://www.storagereview.com/review/samsung-9100-pro-8tb-review-premium-gen5-performance-at-a-massive-scale",
    ),
)  # fmt: skip


def find_drive(name: str) -> Drive:
    """The drive whose name or kind contains `name`, in any case. Raises FlashliteError unless just one does."""
    found = [drive for drive in DRIVES if name.lower() in f"{drive.name}, {drive.kind}".lower()]
    if len(found) != 1:
        called = f"{len(found)} published drives are" if found else "no published drive is"
        raise FlashliteError(f"{called} called {name!r}: choose one of {', '.join(d.name for d in found or DRIVES)}")
    return found[0]
