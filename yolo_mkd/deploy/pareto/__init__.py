"""What a model costs and what it detects, over many reports: one table, one picture, and which models nobody beats.

Reports of export, check, time and bundle are joined by the SHA-256 of the file that they measured. Machines stay apart.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from yolo_mkd.settings import BadInput

KINDS = ("export", "check", "time", "bundle")
NOT_TIMED = "not timed"


def pareto(reports: str | Sequence[str | Path], out: str | Path | None = None) -> dict[str, Any]:
    """Join reports into rows, one for each file on each machine, and mark those that no other row beats.

    Args:
        reports: JSON reports of export, check, time and bundle, or folders of them; a list, or with commas.
        out: a folder for pareto.json, .md, .csv and .png.

    Returns:
        `rows` by machine, then by latency: name, format, precision, head, runtime, parameters, bytes, map50_95,
        retained (of its checkpoint's mAP), p50_ms and p90_ms (end to end), mj_per_image, stable, front, machine,
        source and sha256; None where no report says. `machines`: in the order of the rows.

    Raises:
        BadInput: a report cannot be read or joined, one file was timed twice alike, or mAP is of different images.
    """
    facts: dict[str, dict[str, Any]] = {}
    times: dict[tuple[str, ...], dict[str, Any]] = {}
    named = reports.split(",") if isinstance(reports, str) else reports
    for path, found in [(p, read(p)) for p in expanded(named)]:
        digest = found["model"]["sha256"] if kind(found) == "bundle" else found.get("sha256")
        if not digest:
            raise BadInput(
                f"{path} names no file's SHA-256 and cannot be joined (trtexec's log has none): leave it out"
            )
        known = facts.setdefault(digest, {"path": path})
        known |= {key: value for key, value in about(found).items() if value is not None}
        if kind(found) == "time":
            place = (digest, machine(found), runtime(found))
            if place in times:
                raise BadInput(f"{path} times what {times[place]['path']} does, on the same machine: keep one of them")
            times[place] = {"path": path, **found}
    refuse_other_images(facts.values())
    labels = names(facts)
    rows = [{**row(labels[key[0]], facts[key[0]], found), "sha256": key[0]} for key, found in times.items()]
    timed = {key[0] for key in times}
    rows += [
        {**row(labels[digest], known, None), "sha256": digest} for digest, known in facts.items() if digest not in timed
    ]
    mark_front(rows)
    rows.sort(key=lambda r: (r["machine"] == NOT_TIMED, r["machine"], r["p50_ms"] or 0.0))
    machines = list(dict.fromkeys(r["machine"] for r in rows if r["machine"] != NOT_TIMED))
    document = {"rows": rows, "machines": machines}
    if out is not None:
        from yolo_mkd.deploy.pareto.tables import write

        write(document, out)
    return document


def expanded(reports: Sequence[str | Path]) -> list[Path]:
    """The report files that are named, and those that lie in the folders named; each once.

    Raises:
        BadInput: none is found.
    """
    found: list[Path] = []
    for path in map(Path, reports):
        inside = sorted(path.rglob("*.json")) if path.is_dir() else []
        found += [p for p in inside if is_report(p)] if path.is_dir() else [path]
    if not found:
        raise BadInput("reports= names no report: make some with yolo-mkd export and yolo-mkd time")
    return list({p.resolve(): p for p in found}.values())


def is_report(path: Path) -> bool:
    """Whether a JSON file in a folder is a report that can be joined."""
    try:
        return kind(json.loads(path.read_text(encoding="utf-8"))) in KINDS
    except (OSError, ValueError):
        return False


def read(path: Path) -> dict[str, Any]:
    """Read one report.

    Raises:
        BadInput: it is missing, torn, or of another kind.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path} cannot be read as a report ({type(error).__name__}): leave it out of reports="
        ) from error
    if kind(found) not in KINDS:
        raise BadInput(f"{path} is no report of {', '.join(KINDS)}: leave it out of reports=")
    return dict(found)


def kind(found: Any) -> str:
    """What a report measured: the middle of its schema; empty when it is none of ours."""
    parts = str(found.get("schema")).split("/") if isinstance(found, dict) else []
    return parts[1] if len(parts) == 3 and parts[0] == "yolo-mkd" else ""


def about(found: dict[str, Any]) -> dict[str, Any]:
    """What a report says of its file, whatever its kind."""
    if kind(found) == "bundle":
        facts = found["model"] | {"head": found["head"], "source": found["source"], "format": "onnx"}
        facts["accuracy"], facts["names"] = found["reference"], dict(enumerate(found["names"]))
    else:
        facts = found
    accuracy = facts.get("accuracy") or {}
    keys = ["file", "bytes", "head", "parameters"]
    if kind(found) != "time":  # an engine's report names the ONNX file that the engine was built from
        keys += ["format", "precision"]
    return {
        **{key: facts.get(key) for key in keys},
        "map50_95": accuracy.get("map50_95"),
        "retained": accuracy.get("retained"),
        "images": accuracy.get("images"),
        "classes": sorted(facts["names"].values()) if isinstance(facts.get("names"), dict) else None,
        "source": (facts.get("source") or {}).get("sha256"),
    }


def machine(found: dict[str, Any]) -> str:
    """The machine that timed, with its power mode: what must be the same for two latencies to share a picture."""
    mode = (found.get("device") or {}).get("power_mode")
    place = found["machine"]
    return f"{place['processor']}, {place['cores']} cores" + (f", {mode}" if mode else "")


def runtime(found: dict[str, Any]) -> str:
    """What ran the file, on how many threads."""
    threads = found.get("threads")
    return found["provider"].removesuffix("ExecutionProvider") + (f" x{threads}" if threads else "")


def refuse_other_images(facts: Iterable[dict[str, Any]]) -> None:
    """Refuse mAP of different data in one table.

    Raises:
        BadInput: classes or the number of labelled images differ.
    """
    for key, label in (("classes", "classes"), ("images", "numbers of images")):
        seen = {str(f[key]): f["path"] for f in facts if f.get("map50_95") is not None and f.get(key) is not None}
        if len(seen) > 1:
            first, second = list(seen.values())[:2]
            raise BadInput(f"mAP in {first} and {second} is of different {label}: check both with the same data=")


def names(facts: dict[str, dict[str, Any]]) -> dict[str, str]:
    """A name for each file: that of the file, and where several bear it the folder that tells them apart."""
    files = {digest: known.get("file") or digest[:8] for digest, known in facts.items()}
    count = Counter(files.values())
    labels = {}
    for digest, file in files.items():
        own = facts[digest]["path"].resolve().parent.parts
        others = [facts[d]["path"].resolve().parent.parts for d, f in files.items() if f == file and d != digest]
        apart = [part for part in own if not any(part in other for other in others)]
        labels[digest] = f"{apart[-1]}/{file}" if count[file] > 1 and apart else file
    doubled = Counter(labels.values())
    return {digest: f"{label} {digest[:6]}" if doubled[label] > 1 else label for digest, label in labels.items()}


def row(name: str, known: dict[str, Any], timed: dict[str, Any] | None) -> dict[str, Any]:
    """One line of the table."""
    keys = ("format", "precision", "head", "parameters", "bytes", "map50_95", "retained", "source")
    found = {"name": name, **{key: known.get(key) for key in keys}}
    if timed is None:
        return found | {
            "runtime": None, "p50_ms": None, "p90_ms": None, "mj_per_image": None, "stable": None, "machine": NOT_TIMED,
        }  # fmt: skip
    total, power = timed["segments"]["end_to_end"], (timed.get("device") or {}).get("power")
    return found | {
        "format": timed.get("format") or found["format"],
        "precision": timed.get("precision") or found["precision"],
        "runtime": runtime(timed),
        "p50_ms": total["p50_ms"],
        "p90_ms": total["p90_ms"],
        "mj_per_image": power["mj_per_image"] if power else None,
        "stable": timed["drift"]["stable"],
        "machine": machine(timed),
    }


def drawable(found: dict[str, Any]) -> bool:
    """Whether a row has both a latency and an mAP."""
    return found["p50_ms"] is not None and found["map50_95"] is not None


def mark_front(rows: list[dict[str, Any]]) -> None:
    """Set `front` of each row: no other of its machine is as fast and as accurate, and better in one of both.

    Accuracy counts to four decimals, as it is shown: two exports of one checkpoint differ in the fifth by rounding.
    """
    points = [(r["machine"], r["p50_ms"], round(r["map50_95"], 4)) for r in rows if drawable(r)]
    for r in rows:
        r["front"] = False
        if drawable(r):
            place, p50, score = r["machine"], r["p50_ms"], round(r["map50_95"], 4)
            r["front"] = not any(
                other == place and faster <= p50 and better >= score and (faster, better) != (p50, score)
                for other, faster, better in points
            )
