"""The fields of reports that are joined: what `pareto` reads of the reports of export, check, time and bundle."""

from __future__ import annotations

from typing_extensions import TypedDict

from yolo_mkd.documents import Number


class MeasuredMap(TypedDict, total=False):
    """The mAP of a file."""

    map50_95: Number | None
    retained: Number | None
    images: int | None


class Checkpoint(TypedDict, total=False):
    """The checkpoint that a file was made from."""

    sha256: str | None


class FileReport(TypedDict, total=False):
    """What is read of a report on a file."""

    file: str
    bytes: int | None
    sha256: str | None
    head: str | None
    parameters: int | None
    format: str | None
    precision: str | None
    accuracy: MeasuredMap | None
    names: dict[str, str] | None
    source: Checkpoint | None


class TotalTime(TypedDict):
    """Times of one image [ms]."""

    p50_ms: Number
    p90_ms: Number | None


class Segments(TypedDict):
    """The segment that contains all others."""

    end_to_end: TotalTime


class Energy(TypedDict):
    """The energy of one image [mJ]."""

    mj_per_image: Number | None


class Device(TypedDict, total=False):
    """The device that was timed."""

    power_mode: str | None
    power: Energy | None


class Machine(TypedDict):
    """The machine that was timed."""

    processor: str
    cores: int | None


class Stability(TypedDict):
    """Whether the times stayed the same."""

    stable: bool


class JoinedTime(TypedDict):
    """What a row needs of a time report."""

    provider: str
    machine: Machine
    segments: Segments
    drift: Stability


class TimedReport(FileReport, JoinedTime, total=False):
    """What is read of a time report."""

    device: Device | None
    threads: int | None


class PackedModel(TypedDict, total=False):
    """The file in a bundle."""

    file: str
    bytes: int | None
    sha256: str
    precision: str | None


class BundleReport(TypedDict):
    """What is read of a bundle.json."""

    model: PackedModel
    head: str
    source: Checkpoint
    reference: MeasuredMap
    names: list[str]
