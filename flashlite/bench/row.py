"""What is measured, as typed rows, each with its JSON form: an object whose keys are the names of the fields."""

from __future__ import annotations

import types
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from flashlite.drive.probe import Curve
from flashlite.errors import FlashliteError

Row = TypeVar("Row", bound="Record")


@dataclass(frozen=True)
class Record:
    """Plain data whose JSON form is an object with one key for each field."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {known.name: _plain(getattr(self, known.name)) for known in fields(self)}

    @classmethod
    def from_json(cls: type[Row], data: Any) -> Row:
        """The record of `to_json`; keys that it doesn't know are left out.

        Raises FlashliteError if a key is missing, or if its value is of another type.
        """
        if not isinstance(data, dict):
            raise FlashliteError(f"an object was expected where there is {data!r:.40}")
        hints, found = get_type_hints(cls), {}
        for known in fields(cls):
            if known.name in data:
                found[known.name] = _typed(hints[known.name], data[known.name], known.name)
            elif known.default is MISSING and known.default_factory is MISSING:
                raise FlashliteError(f"the key {known.name!r} is missing")
        return cls(**found)


def _plain(value: Any) -> Any:
    if isinstance(value, (Record, Curve)):
        return value.to_json()
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _typed(hint: Any, value: Any, name: str) -> Any:
    """A value of JSON as the type that a field's annotation asks for."""
    if get_origin(hint) is types.UnionType:
        kinds = get_args(hint)
        return value if type(value) in kinds else _typed(kinds[0], value, name)
    if get_origin(hint) is list and isinstance(value, list):
        return [_typed(get_args(hint)[0], part, name) for part in value]
    if get_origin(hint) is dict and isinstance(value, dict):
        return {key: _typed(get_args(hint)[1], part, name) for key, part in value.items()}
    if isinstance(hint, type) and issubclass(hint, (Record, Curve)):
        return hint.from_json(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise FlashliteError(f"the key {name!r} has the value {value!r:.40}, which is not of type {hint}")
    return value


# A stage of the ladder


@dataclass(frozen=True, kw_only=True)
class TokenCost(Record):
    """What a token needs on average. Times are means over the middle half of the tokens, in ms, counts over all.

    tokens: how many tokens were measured
    io_ms, memory_ms, compute_ms: waiting for flash, managing neurons in DRAM, all else; together they are total_ms
    product_ms: the part of compute_ms that the FFNs' products take
    bytes_per_token, reads_per_token: what was read from flash
    read_mb_s: MB read in a second of waiting
    prefetched_bytes: read ahead of the layer that needs them
    wasted_bytes: those of them that the layer then didn't need
    batches_per_token: how often a token waits for reads
    rows_moved: rows of neurons copied inside DRAM
    dram_bytes: the DRAM that the budget accounts for, as it was spent; with a device, of the device's memory
    copy_ms: waiting for copies to a device, which counts to total_ms as well
    """

    tokens: int
    io_ms: float
    memory_ms: float
    compute_ms: float
    product_ms: float
    total_ms: float
    bytes_per_token: float
    reads_per_token: float
    read_mb_s: float
    prefetched_bytes: float
    wasted_bytes: float
    batches_per_token: int
    rows_moved: float
    dram_bytes: int
    copy_ms: float = 0.0


@dataclass(frozen=True)
class Exactness(Record):
    """How a model compares with the dense one: the same tokens or not, and by how much a logit differs at most."""

    tokens_equal: bool
    max_logit_error: float


@dataclass(frozen=True, kw_only=True)
class StageRow(TokenCost):
    """A stage of the ladder.

    stage, name: which one
    agreement: share of the tokens that the predictor's model would choose as the dense model does, 0 to 1
    tokens_equal, max_logit_error: the stage with the oracle predictor, as in Exactness; None where it wasn't compared
    """

    stage: int
    name: str
    agreement: float
    tokens_equal: bool | None = None
    max_logit_error: float | None = None

    @property
    def title(self) -> str:
        """The stage as it is called in tables and figures: `5 pool`."""
        return f"{self.stage} {self.name}"


@dataclass(frozen=True, kw_only=True)
class StageRun(StageRow):
    """A stage measured in a process of its own.

    prompt_ms: time of the prompt
    linear_ms: time of a token's products with weights that are not FFNs': attention's and the head's
    base_rss_bytes, peak_rss_bytes: memory of the process before it loads the model, and the most that it takes
    product_bytes: FFN weights that a token is multiplied with
    product_bytes_a_second, copy_bytes_a_second: this processor's speed at such products and copies
    host_bytes: with a device, what the budget names of the host's memory: buffers on the way there
    device_peak_bytes: with a GPU, the most that was in use of its memory
    bus_bytes_a_second: with a device, the speed of copies to it
    """

    prompt_ms: float
    linear_ms: float
    base_rss_bytes: int
    peak_rss_bytes: int
    product_bytes: float
    product_bytes_a_second: float
    copy_bytes_a_second: float
    host_bytes: int = 0
    device_peak_bytes: int | None = None
    bus_bytes_a_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class MeasuredStage(StageRun):
    """The median of a stage's runs, beside what a token must cost by the model of `cost.py`."""

    predicted_ms: float


# What stages are compared with


@dataclass(frozen=True)
class DeviceInfo(Record):
    """A GPU by name, and the size of its memory."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class IdleCost(Record):
    """The memory of a process that has loaded no model: now, and at most, and what torch held of a GPU's."""

    base_rss_bytes: int
    peak_rss_bytes: int
    device_peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class DenseCost(Record):
    """The dense model, all of it in DRAM, or what takes its place.

    total_ms, prompt_ms: time of a token, and of the prompt
    rest_ms: time of a token without its FFNs
    dram_bytes, base_rss_bytes: what the model takes, and what the process took before
    scatter: width of the middle half of the tokens' times, as a share of their median; None in results that lack it
    device_peak_bytes: with a GPU, the most that was in use of its memory
    streamed: whether it is naive loading, because the model is larger than the machine's memory
    """

    total_ms: float
    prompt_ms: float
    rest_ms: float
    dram_bytes: int
    base_rss_bytes: int
    streamed: bool = False
    scatter: float | None = None
    device_peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class PeerCost(Exactness):
    """What people use today, on the same weights.

    bytes_per_token: what the drive gave for each token
    device_peak_bytes: with a GPU, the most that was in use of its memory
    agreement: the share of the dense model's tokens that it would have chosen, 0 to 1
    """

    prompt_ms: float
    total_ms: float
    bytes_per_token: float
    peak_rss_bytes: int
    device_peak_bytes: int | None = None
    agreement: float = 1.0


@dataclass(frozen=True)
class PeerRow(Record):
    """A peer by name, and what it costs; None if the system killed it because memory ran out."""

    name: str
    cost: PeerCost | None

    def to_json(self) -> dict[str, Any]:
        """One flat object, whose key `killed` says whether there are any figures."""
        return {"name": self.name, "killed": self.cost is None, **(self.cost.to_json() if self.cost else {})}

    @classmethod
    def from_json(cls, data: Any) -> PeerRow:
        """The row of `to_json`. Raises FlashliteError if it is malformed."""
        state = _PeerState.from_json(data)
        return cls(state.name, None if state.killed else PeerCost.from_json(data))


@dataclass(frozen=True)
class _PeerState(Record):
    name: str
    killed: bool
