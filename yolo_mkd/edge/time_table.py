"""Lines of text that the printed time reports of a device, of a PC and of trtexec have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .samples import FLOORS, percentile_key

if TYPE_CHECKING:
    from .measure import TimeReport

COLUMNS = ("n", "min_ms", "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "p99_9_ms", "max_ms", "std_ms")


def segment_lines(segments: dict[str, dict[str, Any]], option: str = "") -> list[str]:
    """One line of statistics per segment, and a line that explains the percentiles left out.

    Args:
        segments: name -> statistics.
        option: the option that makes a run longer, such as `duration=`; without it nothing is explained.
    """
    titles = (name.replace("_ms", "").replace("_", ".") for name in COLUMNS)
    lines = [f"{'':12}" + "".join(f"{title:>9}" for title in titles) + "  [ms]"]
    for name, row in segments.items():
        lines.append(f"{name:12}" + "".join(f"{cell_text(column, row[column]):>9}" for column in COLUMNS))
    n = next(iter(segments.values()))["n"]
    if not option or n is None:
        return lines
    short = [f"{percentile_key(p)[:-3].replace('_', '.')} needs {floor}" for p, floor in FLOORS.items() if n < floor]
    return [*lines, f"-: too few samples ({', '.join(short)}); increase {option} to collect more"] if short else lines


def cell_text(column: str, value: Any) -> str:
    """A cell of the table: a count, milliseconds with three decimals, or - where there is no value."""
    if value is None:
        return "-"
    return str(value) if column == "n" else f"{value:.3f}"


def start_lines(report: TimeReport) -> list[str]:
    """The lines on load time, warm-up and stability."""
    warm, drift = report["warm_up"], report["drift"]
    settled = "settled" if warm["settled"] else f"not settled, varies by {warm['variation_of_last_50']:.1%}"
    return [
        f"start     load {report['load_ms']:.1f} ms, first inference {report['first_inference_ms']:.1f} ms",
        f"warm-up   {warm['runs']} runs in {warm['seconds']:.1f} s, {settled}",
        f"stable    {'yes' if drift['stable'] else 'NO: ' + drift['reason']}",
    ]


def threads_text(threads: int | None) -> str:
    """The number of threads, in words; empty on a GPU."""
    return "" if threads is None else f", {threads} thread(s)"
