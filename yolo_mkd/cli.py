"""The command line: yolo-mkd VERB key=value ...

Help comes from the docstrings and from the comments of cfg/default.yaml; what a verb needs is imported when it runs.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from yolo_mkd.settings import BadInput, Failed, help_text, parse, refuse_unknown

ULTRALYTICS = "Every other argument is Ultralytics' own and goes through to it."


def train(**arguments: Any) -> None:
    """Distil a student: teacher -> assistant -> student, each stage an Ultralytics run under runs/mkd.

    yolo-mkd train data=coco.yaml model=yolo26n.pt teacher=yolo26m.pt assistant=yolo26s.pt epochs=100 imgsz=640
    """
    from yolo_mkd import chain

    chain.train(**arguments)


def plan(**arguments: Any) -> None:
    """Foresee a training without training: will it help, and what will it cost? In about a minute.

    yolo-mkd plan data=coco.yaml model=yolo26n.pt teacher=yolo26m.pt assistant=yolo26s.pt epochs=100 imgsz=640

    It takes the arguments of train; json=FILE writes the figures as JSON too.
    """
    from yolo_mkd.evidence.plan import plan as run
    from yolo_mkd.evidence.plan.text import text

    print(text(run(**arguments)))


def record(**arguments: Any) -> None:
    """Let the teacher speak about every view that a training will show, and keep it: training then replays it.

    yolo-mkd record data=coco.yaml model=yolo26n.pt teacher=yolo26m.pt epochs=100 imgsz=640 views=8

    It takes the arguments of train, with preset=recorded unless another is given.
    """
    from yolo_mkd.chain.record import record as run

    run(**arguments)


def cost(**arguments: Any) -> None:
    """Measure what distillation costs here: plain, Ultralytics' own, live and recorded training, in turn.

    yolo-mkd cost data=coco.yaml model=yolo26n.pt teacher=yolo26s.pt imgsz=640 batch=16 json=cost.json

    It takes the arguments of train, rounds= (how often each kind takes its turn, 6) and json=FILE, which also draws a
    picture beside it. A teacher given as .yaml is stood in for by an untrained one: that costs the same.
    """
    from yolo_mkd.evidence.cost import cost as run
    from yolo_mkd.evidence.cost.figures import table

    print(table(run(**arguments)))


def compare(**arguments: Any) -> int:
    """Train in several ways and say which is better, by how much and at what cost.

    yolo-mkd compare data=coco.yaml model=yolo26n.pt teacher=yolo26m.pt methods=plain,longer,native,mkd seeds=3
    """
    from yolo_mkd.evidence.compare import compare as run

    return 1 if any(row["failed"] for row in run(**arguments)["rows"]) else 0


def ablate(**arguments: Any) -> int:
    """Take the method apart: all terms, all but one, and each alone, against plain training.

    yolo-mkd ablate data=coco.yaml model=yolo26n.pt teacher=yolo26m.pt record=true seeds=3 epochs=100
    """
    from yolo_mkd.evidence.compare import ablate as run

    return 1 if any(row["failed"] for row in run(**arguments)["rows"]) else 0


def export(**arguments: Any) -> None:
    """Export a trained student to ONNX, OpenVINO or NCNN, in FP32, FP16 or INT8, and verify it on real images.

    yolo-mkd export model=runs/mkd/train/student/weights/best.pt format=onnx quantize=8 target=jp6
    """
    from yolo_mkd.deploy.export import export as run

    run(**known("export", run, arguments, passes_on=True))


def check(**arguments: Any) -> int:
    """Verify an exported file against its checkpoint: structure, matched detections, mAP.

    yolo-mkd check model=best.onnx against=best.pt data=coco8.yaml
    """
    from yolo_mkd.deploy.check import check as run

    parity = run(**known("check", run, arguments))
    print(parity)
    return 0 if parity.passed else 1


def time(*reports: str, **arguments: Any) -> None:
    """Time an exported file on this machine, compare two reports, or read what trtexec measured.

    yolo-mkd time model=runs/mkd/train/student/weights/best.onnx
    yolo-mkd time a.json b.json
    yolo-mkd time log=trtexec.txt times=times.json
    """
    if reports:
        from yolo_mkd.deploy.time.compare import compare as compared

        print(compared(*reports))
    elif "log" in arguments:
        from yolo_mkd.deploy.time.trtexec import ingest

        ingest(**known("time", ingest, arguments))
    else:
        from yolo_mkd.deploy.time import time as run

        run(**known("time", run, arguments))


def bundle(**arguments: Any) -> None:
    """Pack a student with all that a device needs to run, check and time it: a folder and its .tar.gz.

    yolo-mkd bundle model=runs/mkd/train/student/weights/best.pt data=coco.yaml out=student-bundle
    """
    from yolo_mkd.deploy.bundle import bundle as run

    run(**known("bundle", run, arguments))


def pareto(**arguments: Any) -> None:
    """Table and picture of what models cost and detect, from reports of export, check, time and bundle.

    yolo-mkd pareto reports=runs/mkd,device/time.json out=pareto
    """
    from yolo_mkd.deploy.pareto import pareto as run
    from yolo_mkd.deploy.pareto.tables import table

    print(table(run(**{"out": "pareto", **known("pareto", run, arguments)})))


def demo(**arguments: Any) -> None:
    """Run the whole chain on data that it makes itself, in under ten minutes on two cores.

    yolo-mkd demo
    """
    from yolo_mkd.demo import demo as run

    run(**known("demo", run, arguments))


def val(**arguments: Any) -> None:
    """Validate a model: Ultralytics' own val.

    yolo-mkd val model=best.pt data=coco8.yaml
    """
    ultralytics("val", arguments)


def predict(**arguments: Any) -> None:
    """Predict with a model: Ultralytics' own predict.

    yolo-mkd predict model=best.pt source=image.jpg
    """
    ultralytics("predict", arguments)


VERBS: dict[str, Callable[..., int | None]] = {
    "train": train,
    "plan": plan,
    "record": record,
    "cost": cost,
    "compare": compare,
    "ablate": ablate,
    "export": export,
    "check": check,
    "time": time,
    "bundle": bundle,
    "pareto": pareto,
    "demo": demo,
    "val": val,
    "predict": predict,
}


def ultralytics(verb: str, arguments: dict[str, Any]) -> None:
    """Hand a verb over to Ultralytics."""
    if "model" not in arguments:
        raise BadInput(f"model= is missing: give the file to {verb} with")
    from ultralytics import YOLO

    from yolo_mkd import host

    refuse_unknown(arguments, host.arguments(), verb)
    host.check_arguments(arguments)
    path = host.find_model("model", arguments.pop("model"))
    try:
        getattr(YOLO(path), verb)(**arguments)
    except FileNotFoundError as e:
        raise BadInput(host.one_line(e)) from e


def known(
    verb: str, function: Callable[..., Any], arguments: dict[str, Any], passes_on: bool = False
) -> dict[str, Any]:
    """Check a verb's arguments against its function's parameters; the missing and the unknown are refused."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    if not passes_on:
        refuse_unknown(arguments, names, verb)
    for p in parameters:
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.name not in arguments:
            raise BadInput(f"{p.name}= is missing: see yolo-mkd help {verb}")
    return arguments


def compared(verb: str, words: list[str]) -> list[str]:
    """The two reports that `time a.json b.json` names; every other word has to be an argument.

    Raises:
        BadInput: a word is neither.
    """
    reports = [w for w in words if verb == "time" and "=" not in w and w.endswith(".json")]
    if reports and len(reports) == len(words) == 2:
        return reports
    if reports:
        raise BadInput(f"time compares two reports and nothing else: give yolo-mkd time a.json b.json, not {words}")
    parse(w for w in words if "=" not in w)
    return []


def usage() -> str:
    """The short help: every verb with its first line."""
    lines = [
        "yolo-mkd: small YOLO detectors that learn from large ones (M-KD)",
        "",
        "  yolo-mkd VERB key=value ...",
        "",
    ]
    lines += [f"  {name:<9}{(inspect.getdoc(verb) or '').splitlines()[0]}" for name, verb in VERBS.items()]
    return "\n".join([*lines, "", "  yolo-mkd help VERB   its arguments", "  yolo-mkd version"])


def verb_help(name: str) -> str:
    """The help of one verb: its docstring, and for the verbs that train every argument with its meaning."""
    text = inspect.getdoc(VERBS[name]) or ""
    if name in {"train", "plan", "record", "cost", "compare", "ablate"}:
        return f"{text}\n\n{help_text()}\n\n{ULTRALYTICS}"
    if name in {"val", "predict"}:
        return f"{text}\n\n{ULTRALYTICS}"
    if name == "demo":
        from yolo_mkd.demo import demo as function
    else:
        import yolo_mkd

        function = getattr(yolo_mkd, name)
    return f"{text}\n\n{inspect.getdoc(function)}"


def run(words: list[str]) -> int:
    """Run one command line and return its exit code.

    Raises:
        BadInput: the words cannot work.
    """
    if not words or words[0] in {"help", "--help", "-h"}:
        if len(words) > 1 and words[1] not in VERBS:
            raise BadInput(f"{words[1]} is no verb: choose from {', '.join(VERBS)}")
        print(verb_help(words[1]) if len(words) > 1 else usage())
        return 0
    if words[0] in {"version", "--version"}:
        from yolo_mkd import __version__

        print(__version__)
        return 0
    verb, *rest = words
    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, n=1)
        raise BadInput(
            f"{verb} is no verb: " + (f"did you mean {near[0]}?" if near else f"choose from {', '.join(VERBS)}")
        )
    if any(w in {"help", "--help", "-h"} for w in rest):
        print(verb_help(verb))
        return 0
    return VERBS[verb](*compared(verb, rest), **parse(w for w in rest if "=" in w)) or 0


def main() -> None:
    """Entry point: 0 done, 1 the work failed, 2 bad input, 130 interrupted."""
    try:
        code = run(sys.argv[1:])
    except BadInput as e:
        print(f"yolo-mkd: {e}", file=sys.stderr)
        code = 2
    except (Failed, FloatingPointError) as e:
        print(f"yolo-mkd: {e}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("yolo-mkd: interrupted", file=sys.stderr)
        code = 130
    raise SystemExit(code)


if __name__ == "__main__":
    main()
