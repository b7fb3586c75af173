"""Detect on the device, verify its detections against the reference, and build the TensorRT engine.

python run.py PICTURE...      print the detections; --json for programs, --save FOLDER to draw them
python run.py --check         compare the detections on the samples with the reference, in seconds
python run.py --build --fp16  build the TensorRT engine of this device
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from . import tensor_rt
from .boxes import CONF, decode_boxes
from .bundle import Bundle, EdgeError, read_bundle
from .check import check_samples, check_text
from .pictures import letterbox, read_picture, save_drawing, to_tensor
from .runtimes import add_options, open_runtime

if TYPE_CHECKING:
    from .onnx_runtime import ONNXRuntime
    from .tensor_rt import TensorRT


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser("run.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE")
    options.add_argument(
        "--check", action="store_true", help="compare the samples with the reference; exit code 1 when they differ"
    )
    options.add_argument("--build", action="store_true", help="build the TensorRT engine of this device")
    options.add_argument(
        "--conf",
        type=float,
        help="lowest score (default: the bundle's, 0.25 where its file keeps the checkpoint's scores)",
    )
    options.add_argument("--json", action="store_true", help="print JSON")
    options.add_argument("--save", type=Path, metavar="FOLDER", help="draw the boxes (needs OpenCV or Pillow)")
    add_options(options)
    return options


def main(arguments: list[str] | None = None, folder: Path | None = None) -> int:
    """Build, check and detect as the command line requests.

    Args:
        arguments: the command line, by default this process's.
        folder: the bundle, by default the one that contains this file.

    Returns:
        The exit code: 0 success, 1 the check failed, 2 an error, which is printed in one line.
    """
    options = parser().parse_args(arguments)
    if not (options.pictures or options.check or options.build):
        parser().print_help()
        return 2
    try:
        if options.conf is not None and not 0 < options.conf < 1:
            raise EdgeError(f"--conf {options.conf} must be between 0 and 1, for example --conf 0.25")
        bundle = read_bundle(folder or Path(__file__).resolve().parent.parent)
        if options.conf is None:
            options.conf = default_conf(bundle)
        if options.build:
            tensor_rt.build_engine(bundle, options.fp16)
        return check_and_detect(bundle, options) if options.check or options.pictures else 0
    except EdgeError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2


def default_conf(bundle: Bundle) -> float:
    """The threshold that corresponds to 0.25 of the checkpoint: another one where INT8 shifted the scores."""
    return float(bundle.facts.get("thresholds", {}).get("conf", CONF))  # bundles of earlier versions have none


def check_and_detect(bundle: Bundle, options: argparse.Namespace) -> int:
    """Check the samples and detect on the pictures, as the command line requests; return the exit code."""
    runtime = open_runtime(bundle, options)
    result: dict[str, Any] = {"runtime": runtime.provider, "versions": runtime.versions}
    if not options.json:
        height, width = bundle.imgsz
        print(f"model     {bundle.model.name}, {height}x{width}, head {bundle.head}, {len(bundle.names)} classes")
        versions = ", ".join(f"{name} {version}" for name, version in runtime.versions.items())
        print(f"runtime   {runtime.provider}, {runtime.arithmetic}, {versions}")
    if options.check:
        start = perf_counter()
        result["check"] = check_samples(bundle, runtime)
        if not options.json:
            print(check_text(result["check"]), f"          in {perf_counter() - start:.1f} s", sep="\n")
    if options.pictures:
        result["conf"] = options.conf
        if not options.json:
            print(f"conf      {options.conf:g}")
        result["pictures"] = [detect_picture(path, bundle, runtime, options) for path in options.pictures]
    if options.json:
        print(json.dumps(result, indent=2))
    return 0 if result.get("check", {}).get("passed", True) else 1


def detect_picture(
    path: Path, bundle: Bundle, runtime: ONNXRuntime | TensorRT, options: argparse.Namespace
) -> dict[str, Any]:
    """Detect on one picture; print or draw the detections as the command line requests."""
    picture = read_picture(path)
    output, _ = runtime.infer(to_tensor(letterbox(picture, bundle.imgsz)))
    found = decode_boxes(output, bundle.head, (picture.shape[0], picture.shape[1]), bundle.imgsz, options.conf)
    detections: list[dict[str, Any]] = []
    for *corners, score, label in found.tolist():
        box = [round(side, 1) for side in corners]
        detections.append({"name": bundle.names[int(label)], "score": round(score, 4), "box": box})
    if not options.json:
        print(f"{path}: {len(detections)} detections")
        for d in detections:
            print(f"  {d['name']:<20} {d['score']:.3f}  " + " ".join(f"{v:.1f}" for v in d["box"]))
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
        target = options.save / f"{path.stem}.png"
        save_drawing(target, picture, detections)
        print(f"  drawn to {target}", file=sys.stderr)
    return {"file": str(path), "detections": detections}


if __name__ == "__main__":
    sys.exit(main())
