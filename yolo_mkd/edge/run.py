"""Detect on the device, check that it detects what it should, and build the TensorRT engine.

python run.py PICTURE...      print what is found; --json for programs, --save FOLDER to draw it
python run.py --check         replay the samples against the reference, in seconds
python run.py --build --fp16  build the TensorRT engine of this device
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from . import contents as bundle
from . import tensor_rt
from .boxes import CONF, boxes
from .checking import check, text
from .contents import Contents, Trouble
from .pictures import draw, letterbox, read_picture, tensor
from .runtimes import add_options, open_runtime

if TYPE_CHECKING:
    from .onnx_runtime import OnnxRuntime
    from .tensor_rt import TensorRT


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser("run.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE")
    words.add_argument("--check", action="store_true", help="replay the samples; exit code 1 when they differ")
    words.add_argument("--build", action="store_true", help="build the TensorRT engine of this device")
    words.add_argument("--conf", type=float, default=CONF, help="lowest score (default: 0.25)")
    words.add_argument("--json", action="store_true", help="print JSON")
    words.add_argument("--save", type=Path, metavar="FOLDER", help="draw the boxes (needs OpenCV or Pillow)")
    add_options(words)
    return words


def main(words: list[str] | None = None, folder: Path | None = None) -> int:
    """Do what the command line says.

    Args:
        words: the command line, by default this process's.
        folder: the bundle, by default the one this file lies in.

    Returns:
        The exit code: 0 done, 1 the check failed, 2 something is in the way.
    """
    options = parser().parse_args(words)
    if not (options.pictures or options.check or options.build):
        parser().print_help()
        return 2
    try:
        if not 0 < options.conf < 1:
            raise Trouble(f"--conf {options.conf} is no score: give a number between 0 and 1")
        contents = bundle.read(folder or Path(__file__).resolve().parent.parent)
        if options.build:
            tensor_rt.build(contents, options.fp16)
        return replay_and_detect(contents, options) if options.check or options.pictures else 0
    except Trouble as trouble:
        print(f"run.py: {trouble}", file=sys.stderr)
        return 2


def replay_and_detect(contents: Contents, options: argparse.Namespace) -> int:
    """Replay the samples, then detect on the pictures, as asked."""
    runtime = open_runtime(contents, options)
    result: dict[str, Any] = {"runtime": runtime.provider, "versions": runtime.versions}
    if not options.json:
        height, width = contents.imgsz
        print(f"model     {contents.model.name}, {height}x{width}, head {contents.head}, {len(contents.names)} classes")
        versions = ", ".join(f"{name} {version}" for name, version in runtime.versions.items())
        print(f"runtime   {runtime.provider}, {runtime.precision}, {versions}")
    if options.check:
        start = perf_counter()
        result["check"] = check(contents, runtime)
        if not options.json:
            print(text(result["check"]), f"          in {perf_counter() - start:.1f} s", sep="\n")
    if options.pictures:
        result["pictures"] = [one(path, contents, runtime, options) for path in options.pictures]
    if options.json:
        print(json.dumps(result, indent=2))
    return 0 if result.get("check", {}).get("passed", True) else 1


def one(path: Path, contents: Contents, runtime: OnnxRuntime | TensorRT, options: argparse.Namespace) -> dict[str, Any]:
    """Detect on one picture; print or draw what is found as asked."""
    picture = read_picture(path)
    output, _ = runtime.infer(tensor(letterbox(picture, contents.imgsz)))
    found = boxes(output, contents.head, (picture.shape[0], picture.shape[1]), contents.imgsz, options.conf)
    detections: list[dict[str, Any]] = []
    for *corners, score, label in found.tolist():
        box = [round(side, 1) for side in corners]
        detections.append({"name": contents.names[int(label)], "score": round(score, 4), "box": box})
    if not options.json:
        print(f"{path}: {len(detections)} found")
        for d in detections:
            print(f"  {d['name']:<20} {d['score']:.3f}  " + " ".join(f"{v:.1f}" for v in d["box"]))
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
        target = options.save / f"{path.stem}.png"
        draw(target, picture, detections)
        print(f"  drawn in {target}", file=sys.stderr)
    return {"file": str(path), "detections": detections}


if __name__ == "__main__":
    sys.exit(main())
