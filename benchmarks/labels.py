"""How much do unlabelled images help? Accuracy against the share of labels kept, with yolo-mkd compare.

    python benchmarks/labels.py data=bccd.yaml model=yolo26n-w125.yaml teacher=yolo26s.yaml pretrain=voc6.yaml out=DIR

For each of `shares=` the labels of some train images are kept, the other images are used without labels, a teacher is
trained on the labelled ones, and the methods are compared with each other and with plain training on all labels. A
plain run has the same number of batches for every share, `steps=`. A model given as .yaml is trained on `pretrain=`
first. An interrupted run is resumed. The student has two heads (YOLO26, v10); both are validated.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from pretraining import BATCH, SAME, accuracy_of, classes_of, pretrained_model, run_comparison, run_length, train_once

from yolo_mkd import host, plotting, report
from yolo_mkd.evidence.compare.findings import NMS_FREE
from yolo_mkd.evidence.compare.statistics import mean_interval, paired_difference
from yolo_mkd.evidence.compare.tables import difference_text
from yolo_mkd.settings import parse, split_commas

VIEWS = 75  # of each image in the teacher cache, at most: fewer cost accuracy with few images and many epochs
GIVEN = {"pretrain": None, "shares": "0.1,0.25,0.5", "steps": 600, "seeds": 3, "imgsz": 160, "parallel": 1, "split": 0}
GIVEN |= {"soft_pw": 1.0}  # of the distilled methods
LEAST_GAP = 0.004  # mAP50-95 below which there is no gap to close
HEADS = {"through NMS": "map50_95", "without NMS": NMS_FREE}  # the figures of compare
COLOURS = {
    "plain": "#E69F00",
    "longer": "#F0C36D",
    "pseudo": "#000000",
    "mkd": "#56B4E9",
    "mkd + unlabelled": "#0072B2",
}


def split_images(images: dict[str, set[int]], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Choose a share of the images so that each class keeps its share too: iterative stratification.

    Args:
        images: the classes in each image, by file.
        share: of the images to keep, 0..1.
        seed: of the choice.

    Returns:
        The images kept, and the others.
    """
    left = sorted(images)
    random.Random(seed).shuffle(left)
    total = Counter(c for classes in images.values() for c in classes)
    wanted = {c: share * n for c, n in total.items()}
    room = round(share * len(images))
    kept: list[str] = []
    while left:
        counts = Counter(c for image in left for c in images[image])
        rarest = min(counts, key=lambda c: (counts[c], c)) if counts else None
        for image in [i for i in left if rarest is None or rarest in images[i]]:
            left.remove(image)
            short = rarest is None or wanted[rarest] >= 0.5
            if short and len(kept) < room:
                kept.append(image)
                for c in images[image]:
                    wanted[c] -= 1
    return sorted(kept), sorted(set(images) - set(kept))


def write_split(data: dict[str, Any], share: float, seed: int, folder: Path) -> int:
    """Write `data.yaml`, a data set with a share of the labels, and `pool.txt`, the list of the other images.

    Returns:
        The number of images kept.
    """
    kept, others = split_images(classes_of(data), share, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_text("\n".join(kept), encoding="utf-8")
    (folder / "pool.txt").write_text("\n".join(others), encoding="utf-8")
    description = {"path": str(folder.resolve()), "train": "train.txt", "val": data["val"], "names": data["names"]}
    (folder / "data.yaml").write_text(yaml.safe_dump(description), encoding="utf-8")
    return len(kept)


def methods_for(pool: Path, length: dict[str, int], soft_pw: float) -> dict[str, str]:
    """The methods by their names in the tables; all use the same number of images in an optimizer step.

    longer, pseudo and mkd + unlabelled train on twice as many images as the others, in the epochs without mosaic too;
    for longer, all of them have labels.
    """
    return {
        "plain": "plain",
        "longer": "plain:" + ":".join(f"{name}={2 * count}" for name, count in length.items()),
        "pseudo": f"pseudo:unlabelled={pool}",
        "mkd": f"recorded:soft_pw={soft_pw:g}",
        "mkd + unlabelled": f"recorded:soft_pw={soft_pw:g}:unlabelled={pool}:batch={BATCH // 2}",
    }


def accuracy_by_seed(document: dict[str, Any], method: str, figure: str) -> dict[int, float]:
    """A method's mAP50-95 through one of the heads, by seed."""
    row = next(r for r in document["rows"] if r["method"] == method)
    return {int(seed): value for seed, value in row[figure]["by_seed"].items()}


def share_rows(
    by_share: dict[float, dict[str, dict[int, float]]], whole: dict[str, dict[int, float]]
) -> list[dict[str, Any]]:
    """One row a share and method: the accuracies, and their differences from plain and from pseudo.

    Args:
        by_share: mAP50-95 by share, method and seed.
        whole: mAP50-95 of training on all labels, by method (plain, longer) and seed. `closed` is the part of the gap
            to each that a method closes, where that gap is larger than `LEAST_GAP`.
    """
    rows = []
    for share, methods in by_share.items():
        plain = methods["plain"]
        gaps = {name: fmean(own.values()) - fmean(plain.values()) for name, own in whole.items()}
        for method, own in methods.items():
            gain = fmean(own.values()) - fmean(plain.values())
            rows.append(
                {
                    "share": share,
                    "method": method,
                    "by_seed": own,
                    "mean": round(fmean(own.values()), 4),
                    "to_plain": None if method == "plain" else paired_difference(own, plain),
                    "to_pseudo": None if method == "pseudo" else paired_difference(own, methods["pseudo"]),
                    "closed": {name: round(gain / gap, 3) if gap > LEAST_GAP else None for name, gap in gaps.items()},
                }
            )
    return rows


def share_table(
    rows: Sequence[dict[str, Any]], whole: dict[str, dict[int, float]], teachers: dict[float, float]
) -> str:
    """The rows as a table in Markdown."""
    headers = ["labels", "method", "mAP50-95", "to plain [95 %]", "to pseudo [95 %]"]
    headers += [f"of the gap to {name} on all labels" for name in whole]
    cells = []
    for row in rows:
        closed = ["" if row["method"] == "plain" or part is None else f"{part:.0%}" for part in row["closed"].values()]
        changes = [difference_text(row[key]) for key in ("to_plain", "to_pseudo")]
        cells.append([f"{row['share']:.0%}", row["method"], f"{row['mean']:.3f}", *changes, *closed])
    others = [(f"{share:.0%}", "the teacher", figure) for share, figure in teachers.items()]
    others += [("100%", name, fmean(own.values())) for name, own in whole.items()]
    empty = [""] * (len(headers) - 3)
    cells += [[share, name, f"{figure:.3f}", *empty] for share, name, figure in others]
    return report.table(cells, headers, markdown=True)


def draw_shares(found: dict[str, dict[str, Any]], title: str, path: Path) -> None:
    """Plot accuracy against the share of labels with 95 % t intervals, a panel a head and a line a method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True)
    for axes, (head, figures) in zip(panels, found.items(), strict=True):
        draw_head(axes, figures["rows"], figures["all_labels"])
        axes.set_title(f"{title}, {head}", fontsize=10, loc="left")
    panels[0].set_ylabel("mAP50-95, mean and 95 % interval over seeds")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    plotting.save(figure, path)


def draw_head(axes: Any, rows: Sequence[dict[str, Any]], whole: dict[str, dict[int, float]]) -> None:
    """Draw the panel of one head."""
    for i, method in enumerate(dict.fromkeys(r["method"] for r in rows)):
        own = [r for r in rows if r["method"] == method]
        intervals = [mean_interval(list(r["by_seed"].values())) for r in own]
        half = [i["high"] - i["mean"] if i and i["high"] is not None else 0 for i in intervals]
        shares = [100 * r["share"] + 0.35 * (i - 2) for r in own]  # side by side, so that the intervals do not overlap
        axes.errorbar(
            shares, [r["mean"] for r in own], half, marker="o", capsize=3, color=COLOURS[method], label=method
        )
    for name, all_labels in whole.items():
        axes.axhline(fmean(all_labels.values()), color=COLOURS[name], linestyle="--", label=f"{name}, all labels")
    axes.set_xlabel("share of labels kept [%]")
    axes.grid(color="#e6e6e6")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xticks(sorted({100 * r["share"] for r in rows}))


def main(words: Sequence[str]) -> None:
    """Run everything, and write labels-NAME.json, .md and .png to out=, where NAME is the data set's name."""
    given = {**GIVEN, **parse(words)}
    out, data = Path(given["out"]), host.check_data(given["data"])
    imgsz, steps, name = given["imgsz"], given["steps"], Path(given["data"]).stem
    larger = pretrained_model("teacher", given, out.parent / "pretrained")
    student = pretrained_model("model", given, out.parent / "pretrained")
    same = {**SAME, "model": student, "imgsz": imgsz, "seeds": given["seeds"], "parallel": given["parallel"]}
    whole: dict[str, Any] = {}
    by_share: dict[float, Any] = {}
    teachers: dict[float, Any] = {}
    for kind, batches in (("plain", steps), ("longer", 2 * steps)):
        length = run_length(len(classes_of(data)), batches)
        document = run_comparison(out / f"all-{kind}", data=given["data"], methods="plain", **same, **length)
        whole[kind] = {head: accuracy_by_seed(document, "plain", figure) for head, figure in HEADS.items()}
    for share in [float(s) for s in split_commas(given["shares"])]:
        folder = (out / f"{share:g}").resolve()
        length = run_length(write_split(data, share, given["split"], folder), steps)
        teacher = train_once(larger, folder / "teacher", data=str(folder / "data.yaml"), imgsz=imgsz, **length)
        figures = (accuracy_of(teacher, given["data"], imgsz, nms) for nms in (None, False))
        teachers[share] = dict(zip(HEADS, figures, strict=True))
        methods = methods_for(folder / "pool.txt", length, given["soft_pw"])
        document = run_comparison(
            folder / "compare", data=str(folder / "data.yaml"), teacher=teacher, assistant=None,
            views=min(VIEWS, length["epochs"]), methods=",".join(methods.values()), **same, **length,
        )  # fmt: skip
        by_share[share] = {
            head: {short: accuracy_by_seed(document, method, figure) for short, method in methods.items()}
            for head, figure in HEADS.items()
        }
    print(write_report(name, " ".join(words), by_share, whole, teachers, out))


def write_report(
    name: str, command: str, by_share: dict[float, Any], whole: dict[str, Any], teachers: dict[float, Any], out: Path
) -> str:
    """Write labels-NAME.json, .md and .png.

    Args:
        name: of the data set.
        command: that made these figures.
        by_share: mAP50-95 by share, head, method and seed.
        whole: mAP50-95 of training on all labels, by method, head and seed.
        teachers: mAP50-95 of the teachers, by share and head.
        out: folder to write to.

    Returns:
        The tables in Markdown.
    """
    found = {}
    for head in HEADS:
        own = {method: figures[head] for method, figures in whole.items()}
        rows = share_rows({share: figures[head] for share, figures in by_share.items()}, own)
        theirs = {share: figures[head] for share, figures in teachers.items()}
        found[head] = {"rows": rows, "all_labels": own, "teachers": theirs}
    report.write(out / f"labels-{name}.json", "labels", {"command": command, "heads": found})
    pages = (
        f"mAP50-95 {head}:\n\n{share_table(f['rows'], f['all_labels'], f['teachers'])}\n" for head, f in found.items()
    )
    text = "\n".join(pages)
    report.write_text(out / f"labels-{name}.md", text)
    draw_shares(found, name, out / f"labels-{name}.png")
    return text


if __name__ == "__main__":
    main(sys.argv[1:])
