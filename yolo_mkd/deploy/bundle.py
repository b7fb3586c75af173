"""One folder with all that a device needs to run, check and time a student: model, scripts, samples, what to expect."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from yolo_mkd import report
from yolo_mkd.deploy import exported_model as artefact
from yolo_mkd.deploy.check import CONF, LOWER_CONFS, detect
from yolo_mkd.deploy.exported_model import existing
from yolo_mkd.deploy.images import MOST_IMAGES, find_images, read_image, spread
from yolo_mkd.edge import contents
from yolo_mkd.edge.boxes import MAX_DET, NMS_IOU, boxes
from yolo_mkd.edge.checking import TOLERANCES, canvas_hash, check, judge
from yolo_mkd.edge.contents import SCHEMA
from yolo_mkd.edge.onnx_runtime import OnnxRuntime
from yolo_mkd.edge.pictures import letterbox, read_picture, tensor, write_png
from yolo_mkd.settings import BadInput, Failed

LARGEST = 1.25  # ours: a sample's longer side, in sides of the model's input; larger pictures are shrunk
ABSOLUTE = re.compile(r"(?<![\w:/\\.])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"]+[/\\])+")  # the folders of an absolute path
SCRIPTS = ("run", "time")
LAUNCHER = '''"""{summary}"""

import sys

from edge.{name} import main

sys.exit(main())
'''
LAYOUTS = {
    "one2many": "1 x (4 + classes) x anchors: centre x, centre y, width, height [input pixels], a score per class",
    "one2one": "1 x rows x 6: x1, y1, x2, y2 [input pixels], score, class; the best score first",
}


class Relative(io.TextIOBase):
    """Standard output without the name of a folder that is gone when the text is read."""

    def __init__(self, out: TextIO, folder: str) -> None:
        self.out, self.folder = out, folder + os.sep

    def write(self, text: str) -> int:
        """Write text at once."""
        return self.out.write(text.replace(self.folder, ""))

    def flush(self) -> None:
        """Show what was written."""
        self.out.flush()


def bundle(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    head: str | None = None,
    target: str = "generic",
    quantize: int | None = None,
    imgsz: int | list[int] | None = None,
    samples: int = 8,
) -> Path:
    """Export a student and pack it with all that a device needs: a folder, and the same as .tar.gz.

    Args:
        model: the .pt checkpoint.
        data: the data.yaml whose val images give the reference mAP and the samples.
        out: the folder to make; one that is there is replaced only if it is a bundle.
        head: one2one or one2many, as in export.
        target: jp5, jp6, jp7 or generic, as in export.
        quantize: 16 or 8, as in export.
        imgsz: image size [pixels], as in export.
        samples: how many val images travel with the bundle, 2 to 32.

    Returns:
        The folder.

    Raises:
        BadInput: an argument cannot work.
        Failed: the export failed, or the bundle does not detect what its model does.
    """
    from yolo_mkd.deploy.export import export

    source, place = existing("model", model, ".pt"), Path(str(out))
    if isinstance(samples, bool) or not isinstance(samples, int) or not 2 <= samples <= MOST_IMAGES:
        raise BadInput(f"samples={samples} is no number of images from 2 to {MOST_IMAGES}: give for example samples=8")
    refuse_foreign(place)
    pictures = spread(find_images(None, data), samples)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=place.parent) as folder:
        copied = Path(shutil.copy(source, folder))
        with contextlib.redirect_stdout(Relative(sys.stdout, folder)):
            exported = export(copied, "onnx", head=head, target=target, quantize=quantize, imgsz=imgsz, data=data)
        exports = json.loads(exported.with_suffix(".export.json").read_text(encoding="utf-8"))
        built = pack(exported, exports, pictures, data, Path(folder) / place.name)
        archive = compress(built)
        if place.exists():
            os.rename(place, Path(folder) / "replaced")
        os.rename(built, place)
        os.replace(archive, archive_of(place))
    print(f"bundle    {place}, and {archive_of(place).name} of {archive_of(place).stat().st_size / 1e6:.1f} MB")
    print("next      copy it to the device, then there: python run.py --check")
    return place


def archive_of(place: Path) -> Path:
    """The .tar.gz beside a bundle."""
    return place.with_name(place.name + ".tar.gz")


def refuse_foreign(place: Path) -> None:
    """Refuse to replace what is no bundle of ours.

    Raises:
        BadInput: the folder or its archive is there and something else.
    """
    if place.exists() and not is_bundle(place):
        raise BadInput(f"out={place} is there and no bundle: give a new folder")
    archive = archive_of(place)
    if archive.exists() and not place.exists():
        raise BadInput(f"{archive} is there without its folder: remove it, or give another out=")


def is_bundle(place: Path) -> bool:
    """Whether a folder is a bundle, of whatever version."""
    try:
        schema = json.loads((place / "bundle.json").read_text(encoding="utf-8"))["schema"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return str(schema).startswith(SCHEMA.rsplit("/", 1)[0])


def pack(exported: Path, exports: dict[str, Any], pictures: list[Path], data: str | Path, folder: Path) -> Path:
    """Make a bundle's folder of an exported file, and check it as the device will.

    Args:
        exported: the .onnx file.
        exports: the export's report.
        pictures: the images that become samples.
        data: the data.yaml that the export was verified on.
        folder: the folder to make.

    Raises:
        Failed: nothing is detected on the samples, or the scripts find something else than Ultralytics does.
    """
    folder.mkdir()
    model, accuracy = folder / "model.onnx", exports["accuracy"]
    graph = without_paths(exported, model)
    stated = {entry.key: entry.value for entry in graph.metadata_props}
    about = artefact.read(model)
    copy_scripts(folder)
    facts = {
        "schema": SCHEMA,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": report.versions(),
        "task": "detect",
        "names": [about.names[index] for index in sorted(about.names)],
        "imgsz": list(about.imgsz),
        "stride": about.stride,
        "head": about.head,
        "nms": {"iou": NMS_IOU, "max_det": MAX_DET} if about.head == "one2many" else None,
        "output": list(about.output),
        "output_layout": LAYOUTS[about.head],
        "preprocess": json.loads(stated["yolo_mkd.preprocess"]),
        "model": {
            **artefact.identity(model),
            "precision": about.precision,
            "opset": exports["opset"],
            "ir": graph.ir_version,
            "target": exports["target"],
            "calibration": exports["calibration"],
        },
        "source": exports["source"],
        "reference": {
            "map50_95": accuracy["map50_95"],
            "map50": accuracy["map50"],
            "checkpoint_map50_95": accuracy["checkpoint_map50_95"],
            "retained": accuracy["retained"],
            "images": accuracy["images"],
            "data": Path(data).name,
            "command": f"yolo-mkd check model=model.onnx against={exports['source']['file']} data={Path(data).name}",
        },
        "samples": len(pictures),
        "licence": stated.get("license"),
    }
    write_json(folder / "bundle.json", facts)
    (folder / "README.txt").write_text(readme(facts), encoding="utf-8")
    inside = contents.read(folder)
    write_json(folder / "sample" / "expected.json", reference(inside, about, pictures))
    result = check(inside, OnnxRuntime(model, inside.precision))
    if not result["passed"]:
        raise Failed(f"the bundle does not pass its own check: {result['reason']}")
    return folder


def without_paths(exported: Path, target: Path) -> Any:
    """Write the model without the folders of this machine that its metadata name; return its graph."""
    import onnx

    graph = onnx.load(exported)
    for entry in graph.metadata_props:
        entry.value = ABSOLUTE.sub("", entry.value)
    onnx.save(graph, target)
    return graph


def reference(inside: contents.Contents, about: artefact.ExportedModel, pictures: list[Path]) -> dict[str, Any]:
    """Save the samples, and say what must be found on them.

    A sample is a PNG: lossless, so that every device sees the same pixels, and readable with zlib and numpy alone. The
    boxes are the scripts' own on numpy's pixels, which are the same everywhere; Ultralytics, whose pipeline the mAP is
    measured with, must find them too.

    Raises:
        Failed: nothing is detected at any threshold, which would prove nothing, or Ultralytics finds something else.
    """
    folder, lowest = inside.folder / "sample", LOWER_CONFS[-1] / 2
    folder.mkdir()
    runtime, saved, ours, hashes, exact = OnnxRuntime(inside.model, inside.precision), [], [], [], True
    for index, path in enumerate(pictures):
        saved.append(folder / f"{index:02}.png")
        write_png(saved[-1], shrunk(read_image(path), round(LARGEST * max(about.imgsz)))[..., ::-1])
        picture = read_picture(saved[-1])
        canvas = letterbox(picture, inside.imgsz, own=True)
        exact = exact and bool((canvas == letterbox(picture, inside.imgsz)).all())
        hashes.append(canvas_hash(canvas))
        output, _ = runtime.infer(tensor(canvas))
        ours.append(boxes(output, inside.head, picture.shape[:2], inside.imgsz, lowest))
    scores = np.concatenate([rows[:, 4] for rows in ours])
    conf = next((c for c in (CONF, *LOWER_CONFS) if (scores >= c).sum() >= len(pictures)), LOWER_CONFS[-1])
    if not (scores >= conf).any():
        raise Failed(
            f"nothing is detected on the {len(pictures)} samples: train the model further, or give more samples="
        )

    theirs = [rows.astype(np.float32) for rows in detect(inside.model, saved, about, lowest)]
    tolerance = TOLERANCES["fp32" if exact else "int8"]  # one file, one runtime; only OpenCV may round otherwise
    result = judge([(p.name, t, o) for p, t, o in zip(saved, theirs, ours, strict=True)], conf, tolerance)
    if not result["passed"]:
        raise Failed(f"the bundle's scripts do not detect what Ultralytics does: {result['reason']}")
    images = [
        {"file": path.name, "canvas_sha256": digest, "boxes": rows[rows[:, 4] >= conf / 2].round(6).tolist()}
        for path, digest, rows in zip(saved, hashes, ours, strict=True)
    ]
    agreed = {key: result[key] for key in ("min_iou", "max_score_difference", "alone")}
    columns = ["x1", "y1", "x2", "y2", "score", "class"]
    return {"conf": conf, "columns": columns, "against_ultralytics": agreed, "images": images}


def shrunk(picture: Any, longest: int) -> Any:
    """A picture whose longer side is at most `longest` pixels."""
    import cv2

    height, width = picture.shape[:2]
    gain = longest / max(height, width)
    if gain >= 1:
        return picture
    return cv2.resize(picture, (round(width * gain), round(height * gain)), interpolation=cv2.INTER_AREA)


def copy_scripts(folder: Path) -> None:
    """Copy the device's modules as they are, with a launcher for each script."""
    ours = Path(contents.__file__).parent
    (folder / "edge").mkdir()
    for module in sorted(ours.glob("*.py")):
        shutil.copyfile(module, folder / "edge" / module.name)
    for name in SCRIPTS:
        summary = (ours / f"{name}.py").read_text(encoding="utf-8").split('"""')[1].splitlines()[0]
        (folder / f"{name}.py").write_text(LAUNCHER.format(summary=summary, name=name), encoding="utf-8")


def readme(facts: dict[str, Any]) -> str:
    """README.txt, with the facts of this bundle."""
    height, width = facts["imgsz"]
    found = facts["reference"]
    measured = "mAP was not measured: the data has no labels"
    if found["map50_95"] is not None:
        measured = (
            f"mAP50-95 {found['map50_95']:.4f}, which is {found['retained']:.2%} of the checkpoint's, "
            f"mAP50 {found['map50']:.4f}\n"
            f"on the {found['images']} labelled val images of {found['data']}, where this bundle was made"
        )
    text = Path(contents.__file__).with_name("README.txt").read_text(encoding="utf-8")
    return text.format(
        model=Path(facts["source"]["file"]).stem, classes=len(facts["names"]), height=height, width=width,
        head=facts["head"], precision=facts["model"]["precision"], samples=facts["samples"], measured=measured,
        licence=facts["licence"] or "not stated",
    )  # fmt: skip


def compress(folder: Path) -> Path:
    """Pack a folder as .tar.gz beside it, without the names of this machine's users."""

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    archive = archive_of(folder)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name, filter=anonymous)
    return archive


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write JSON for people and programs."""
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
