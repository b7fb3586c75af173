"""A folder with everything that a device needs to run, check and time a student: model, scripts, samples, reference."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO, TypedDict

from yolo_mkd import report
from yolo_mkd.deploy.bundle_samples import make_reference
from yolo_mkd.deploy.export import export
from yolo_mkd.deploy.exported_model import existing_file, file_identity, read_exported_model
from yolo_mkd.deploy.images import MOST_IMAGES, evenly_spaced, find_images
from yolo_mkd.edge import bundle as edge_bundle
from yolo_mkd.edge.boxes import CONF, MAX_DET, NMS_IOU
from yolo_mkd.edge.bundle import SCHEMA, read_bundle
from yolo_mkd.edge.check import check_samples
from yolo_mkd.edge.onnx_runtime import ONNXRuntime
from yolo_mkd.locking import workspace
from yolo_mkd.settings import BadInput, Failed, file_path, number

EDGE = Path(edge_bundle.__file__).parent
ABSOLUTE = re.compile(r"(?<![\w:/\\.])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"]+[/\\])+")  # the folders of an absolute path
SCRIPTS = ("run", "time")
WORKSPACE = ".bundle-"  # begins the name of the temporary folder, before that of the bundle
READY, REPLACED = "ready", "replaced"  # in it: a complete bundle with its archive, and the folder that it replaces
LAUNCHER = '''"""{summary}"""

import sys

from edge.{name} import main

sys.exit(main())
'''
LAYOUTS = {
    "one2many": "1 x (4 + classes) x anchors: centre x, centre y, width, height [input pixels], a score per class",
    "one2one": "1 x rows x 6: x1, y1, x2, y2 [input pixels], score, class; the best score first",
}


class Reference(TypedDict):
    """The mAP that the export measured on this machine."""

    map50_95: float | None
    map50: float | None
    checkpoint_map50_95: float | None
    retained: float | None
    images: int
    data: str
    command: str


class BundleThresholds(TypedDict):
    """Score thresholds of the file; None where the data have no labels."""

    conf: float  # run.py's default: what 0.25 of the checkpoint corresponds to in this file
    checkpoint_conf: float
    shift_logits: float | None  # of the file's scores, where they are clearly shifted
    best_f1: float | None
    classes: dict[str, float]  # best F1 by class


class BundleFacts(TypedDict):
    """bundle.json."""

    schema: str
    made: str
    versions: dict[str, str]
    task: str
    names: list[str]
    imgsz: list[int]
    stride: int
    head: str
    nms: dict[str, float] | None
    output: list[int]
    output_layout: str
    preprocess: dict[str, Any]
    model: dict[str, Any]
    source: dict[str, Any]
    reference: Reference
    thresholds: BundleThresholds
    samples: int
    licence: str | None


class PathStrippingStdout(io.TextIOBase):
    """Standard output without the path of a temporary folder, which no longer exists when the text is read."""

    def __init__(self, out: TextIO, folder: str) -> None:
        self.out, self.folder = out, folder + os.sep

    def write(self, text: str) -> int:
        """Write text immediately."""
        return self.out.write(text.replace(self.folder, ""))

    def flush(self) -> None:
        """Flush standard output."""
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
    trust: bool = False,
) -> Path:
    """Export a student and pack it with everything that a device needs: a folder, and the same as .tar.gz.

    Args:
        model: the .pt checkpoint.
        data: the data.yaml whose val images give the reference mAP and the samples.
        out: the folder to make; an existing folder is replaced only if it is a bundle.
        head: one2one or one2many, as in export.
        target: jp5, jp6, jp7 or generic, as in export.
        quantize: 16 or 8, as in export.
        imgsz: image size [pixels], as in export.
        samples: the number of val images in the bundle, 2 to 32.
        trust: load a checkpoint that holds code beside weights; loading it can run anything.

    Returns:
        The folder.

    Raises:
        BadInput: an argument is invalid.
        Failed: the export failed, or the bundle's scripts do not detect what the exported model does.
    """
    source, place = existing_file("model", model, ".pt"), file_path("out", out, "student-bundle")
    number("samples", samples, whole=True, low=2, high=MOST_IMAGES, example=8)
    from yolo_mkd import host

    with host.trusting(trust):
        host.refuse_code("model", source)  # by the user's name for it, not by that of its copy
    with host.trusting(trust), workspace(place.parent / f"{WORKSPACE}{place.name}", rescue=switch) as folder:
        refuse_other_folder(place)
        pictures = evenly_spaced(find_images(None, data), samples)
        copied = Path(shutil.copy(source, folder))
        with contextlib.redirect_stdout(PathStrippingStdout(sys.stdout, str(folder))):
            exported = export(copied, "onnx", head=head, target=target, quantize=quantize, imgsz=imgsz, data=data)
        export_report = json.loads(exported.with_suffix(".export.json").read_text(encoding="utf-8"))
        making = folder / "making"
        making.mkdir()
        compress(build_folder(exported, export_report, pictures, data, making / place.name))
        os.rename(making, folder / READY)  # from here on the old bundle is replaced, if need be by the next run
        switch(folder)
    print(f"bundle    {place}, and {archive_of(place).name} of {archive_of(place).stat().st_size / 1e6:.1f} MB")
    print("next      copy it to the device, then there: python run.py --check")
    return place


def switch(folder: Path) -> None:
    """Put a complete bundle in the place of an older one; does nothing where there is none.

    After a kill at any step it can be called again. At each moment there is one of these in place: the old bundle, the
    old folder alone, nothing, the new folder alone, the new bundle; never a folder with the archive of another.

    Args:
        folder: the temporary folder, which has the bundle's name.
    """
    place = folder.with_name(folder.name.removeprefix(WORKSPACE))
    built = folder / READY / place.name
    archive, replaced = archive_of(built), folder / REPLACED
    if built.exists():
        if place.exists() and replaced.exists():
            return  # another one was made there since the kill
        archive_of(place).unlink(missing_ok=True)
        if place.exists():
            os.rename(place, replaced)
        try:
            os.rename(built, place)
        except OSError:
            if replaced.exists():
                os.rename(replaced, place)
            raise
    if archive.exists():
        os.replace(archive, archive_of(place))


def archive_of(place: Path) -> Path:
    """The .tar.gz beside a bundle."""
    return place.with_name(place.name + ".tar.gz")


def refuse_other_folder(place: Path) -> None:
    """Raise BadInput where a folder, or an archive without its folder, exists that is not a bundle."""
    if place.exists() and not is_bundle(place):
        raise BadInput(f"out={place} exists and is not a bundle: give a new folder")
    archive = archive_of(place)
    if archive.exists() and not place.exists():
        raise BadInput(f"{archive} exists without its folder: remove it, or give another out=")


def is_bundle(place: Path) -> bool:
    """Whether a folder is a bundle, of any version."""
    try:
        schema = json.loads((place / "bundle.json").read_text(encoding="utf-8"))["schema"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return str(schema).startswith(SCHEMA.rsplit("/", 1)[0])


def build_folder(
    exported: Path, export_report: dict[str, Any], pictures: list[Path], data: str | Path, folder: Path
) -> Path:
    """Make a bundle's folder from an exported file, and check it as the device will.

    Args:
        exported: the .onnx file.
        export_report: its report.
        pictures: the images that become samples.
        data: the data.yaml that the export was verified on.
        folder: the folder to make.

    Raises:
        Failed: nothing is detected on the samples, or the scripts do not detect what Ultralytics does.
    """
    folder.mkdir()
    graph = copy_without_paths(exported, folder / "model.onnx")
    copy_scripts(folder)
    facts = bundle_facts(folder / "model.onnx", graph, export_report, len(pictures), Path(data).name)
    write_json(folder / "bundle.json", dict(facts))
    note = (export_report["accuracy"] or {}).get("note", "")
    report.write_text(folder / "README.txt", readme_text(facts, note))
    bundle = read_bundle(folder)
    write_json(folder / "sample" / "expected.json", make_reference(bundle, pictures))
    result = check_samples(bundle, ONNXRuntime(bundle.model, bundle.precision))
    if not result["passed"]:
        raise Failed(f"the bundle does not pass its own check: {result['reason']}")
    return folder


def bundle_facts(model: Path, graph: Any, export_report: dict[str, Any], samples: int, data: str) -> BundleFacts:
    """The contents of bundle.json.

    Args:
        model: the bundle's model.onnx.
        graph: its ONNX graph.
        export_report: the report of the export.
        samples: the number of samples.
        data: the name of the data.yaml.
    """
    stated = {entry.key: entry.value for entry in graph.metadata_props}
    metadata, accuracy, source = read_exported_model(model), export_report["accuracy"], export_report["source"]
    return {
        "schema": SCHEMA,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": report.versions(),
        "task": "detect",
        "names": [metadata.names[index] for index in sorted(metadata.names)],
        "imgsz": list(metadata.imgsz),
        "stride": metadata.stride,
        "head": metadata.head,
        "nms": {"iou": NMS_IOU, "max_det": MAX_DET} if metadata.head == "one2many" else None,
        "output": list(metadata.output),
        "output_layout": LAYOUTS[metadata.head],
        "preprocess": json.loads(stated["yolo_mkd.preprocess"]),
        "model": {
            **file_identity(model),
            "precision": metadata.precision,
            "opset": export_report["opset"],
            "ir": graph.ir_version,
            "target": export_report["target"],
            "calibration": export_report["calibration"],
        },
        "source": source,
        "reference": {
            "map50_95": accuracy["map50_95"],
            "map50": accuracy["map50"],
            "checkpoint_map50_95": accuracy["checkpoint_map50_95"],
            "retained": accuracy["retained"],
            "images": accuracy["images"],
            "data": data,
            "command": f"yolo-mkd check model=model.onnx against={source['file']} data={data}",
        },
        "thresholds": thresholds_of(export_report),
        "samples": samples,
        "licence": stated.get("license"),
    }


def thresholds_of(export_report: dict[str, Any]) -> BundleThresholds:
    """The score thresholds that an export measured."""
    shift, best = export_report["score_shift"], export_report["accuracy"]["thresholds"]
    return {
        "conf": round(shift["conf"], 4) if shift else CONF,
        "checkpoint_conf": CONF,
        "shift_logits": shift["logits"] if shift else None,
        "best_f1": best["file"] if best else None,
        "classes": {row["name"]: row["file"] for row in best["classes"]} if best else {},
    }


def copy_without_paths(exported: Path, target: Path) -> Any:
    """Copy the model without the absolute paths in its metadata, and return its graph."""
    import onnx

    graph = onnx.load(exported)
    for entry in graph.metadata_props:
        entry.value = ABSOLUTE.sub("", entry.value)
    onnx.save(graph, target)
    return graph


def copy_scripts(folder: Path) -> None:
    """Copy the device's modules unchanged, with a launcher for each script."""
    (folder / "edge").mkdir()
    for module in sorted(EDGE.glob("*.py")):
        shutil.copyfile(module, folder / "edge" / module.name)
    for name in SCRIPTS:
        summary = (EDGE / f"{name}.py").read_text(encoding="utf-8").split('"""')[1].splitlines()[0]
        report.write_text(folder / f"{name}.py", LAUNCHER.format(summary=summary, name=name))


def readme_text(facts: BundleFacts, note: str) -> str:
    """README.txt, with the facts of this bundle; `note` says why its mAP was not measured, if it was not."""
    height, width = facts["imgsz"]
    found = facts["reference"]
    measured = f"mAP was not measured: {note}"
    if found["map50_95"] is not None and found["retained"] is not None:
        measured = (
            f"mAP50-95 {found['map50_95']:.4f}, which is {found['retained']:.2%} of the checkpoint's, "
            f"mAP50 {found['map50']:.4f}\n"
            f"on the {found['images']} labelled val images of {found['data']}, where this bundle was made"
        )
    template = (EDGE / "README.txt").read_text(encoding="utf-8")
    return template.format(
        model=Path(facts["source"]["file"]).stem,
        classes=len(facts["names"]),
        height=height,
        width=width,
        head=facts["head"],
        precision=facts["model"]["precision"],
        samples=facts["samples"],
        measured=measured,
        licence=facts["licence"] or "not stated",
    )


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
    """Write a JSON file with indentation, whole or not at all."""
    report.write_text(path, json.dumps(document, indent=1) + "\n")
