"""The command line: yolo-mkd COMMAND key=value ...

Help comes from the functions that run and from the comments of cfg/default.yaml. What a command needs is imported
when it runs.
"""

from __future__ import annotations

import difflib
import errno
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from yolo_mkd import report
from yolo_mkd.settings import BadInput, Failed, argument_sections, defaults, parse, refuse_unknown
from yolo_mkd.settings.commands import NOT_OF_TRAINING, OWN, ULTRALYTICS_REFUSED, Option, listing, options_of

HELP = {"help", "--help", "-h"}
FLAGS = {"half", "int8", "end2end", "nms"}  # stand alone in `yolo` too, although their defaults are not booleans
DOCS = "https://docs.ultralytics.com/usage/cfg"
ULTRALYTICS = f"Every other argument is Ultralytics' own, under its own name: {DOCS}"


def train(**arguments: Any) -> None:
    """Distil a student: teacher -> assistant -> student, each stage an Ultralytics run under runs/mkd.

    yolo-mkd train data=coco.yaml model=yolo26n.pt teacher=yolo26m.pt assistant=yolo26s.pt epochs=100 imgsz=640
    """
    from yolo_mkd import chain

    folder, trained = chain.train(**arguments)
    from yolo_mkd.evidence.card import write_card_after

    write_card_after(folder)
    if trained["arguments"].get("plots", True):
        from yolo_mkd import host
        from yolo_mkd.evidence.page import write_page_after

        with host.trusting(arguments.get("trust", False)):
            write_page_after(folder, folder / trained["stages"][-1]["name"])


def plan(**arguments: Any) -> None:
    """Estimate the cost and the likely benefit of a training in about a minute, without training.

    yolo-mkd plan data=coco.yaml model=yolo26n.pt teacher=yolo26m.pt assistant=yolo26s.pt epochs=100 imgsz=640

    It takes the arguments of train.
    """
    from yolo_mkd.evidence.plan import plan as run
    from yolo_mkd.evidence.plan.text import text

    print(text(run(**arguments)))


def record(**arguments: Any) -> None:
    """Fill a teacher cache: compute the teacher's outputs for every augmented view, for training to read from disk.

    yolo-mkd record data=coco.yaml model=yolo26n.pt teacher=yolo26m.pt epochs=100 imgsz=640 views=8

    It takes the arguments of train. An assistant fills a cache of its own when it is trained.
    """
    from yolo_mkd.chain.record import record as run

    run(**arguments)


def cost(**arguments: Any) -> None:
    """Measure what distillation costs on this machine: plain, Ultralytics' own, live and cached training, in turn.

    yolo-mkd cost data=coco.yaml model=yolo26n.pt teacher=yolo26s.pt imgsz=640 batch=16 json=cost.json

    It takes the arguments of train, without an assistant. A teacher given as .yaml is replaced by an untrained model
    of its shape, which costs the same.
    """
    from yolo_mkd.evidence.cost import cost as run
    from yolo_mkd.evidence.cost.figures import cost_table

    print(cost_table(run(**arguments)))


def compare(**arguments: Any) -> int:
    """Train in several ways and report which is better, by how much and at what cost.

    yolo-mkd compare data=coco.yaml model=yolo26n.pt teacher=yolo26m.pt methods=plain,longer,native,mkd seeds=3

    It takes the arguments of train that are the same for every method.
    """
    from yolo_mkd.evidence.compare import compare as run

    return 1 if any(row["failed"] for row in run(**arguments)["rows"]) else 0


def ablate(**arguments: Any) -> int:
    """Compare all terms, all but one of them, and each term alone with plain training.

    yolo-mkd ablate data=coco.yaml model=yolo26n.pt teacher=yolo26m.pt record=true seeds=3 epochs=100

    It takes the arguments of compare without methods=. With record=true it does so for preset=recorded.
    """
    from yolo_mkd.evidence.compare import ablate as run

    return 1 if any(row["failed"] for row in run(**arguments)["rows"]) else 0


def export(**arguments: Any) -> None:
    """Export a trained student to ONNX, OpenVINO or NCNN, in FP32, FP16 or INT8, and check it on real images.

    yolo-mkd export model=runs/mkd/train/student/weights/best.pt format=onnx quantize=8 target=jp6
    """
    from yolo_mkd.deploy.export import export as run

    run(**check_names("export", run, arguments, passes_on=True))


def check(**arguments: Any) -> int:
    """Check an exported file against its checkpoint: structure, matched detections, mAP.

    yolo-mkd check model=best.onnx against=best.pt data=coco8.yaml
    """
    from yolo_mkd.deploy.check import check as run

    parity = run(**check_names("check", run, arguments))
    print(parity)
    return 0 if parity.passed else 1


def time(*reports: str, **arguments: Any) -> None:
    """Time an exported file on this machine, compare two reports, or convert the output of trtexec to a report.

    yolo-mkd time model=runs/mkd/train/student/weights/best.onnx
    yolo-mkd time a.json b.json
    yolo-mkd time log=trtexec.txt times=times.json
    """
    if reports:
        from yolo_mkd.deploy.time.compare import compare_times

        print(compare_times(*reports))
    elif "log" in arguments:
        from yolo_mkd.deploy.time.trtexec import ingest

        ingest(**check_names("time", ingest, arguments))
    else:
        from yolo_mkd.deploy.time import time as run

        run(**check_names("time", run, arguments))


def bundle(**arguments: Any) -> None:
    """Pack a student with all that a device needs to run, check and time it: a folder and its .tar.gz.

    yolo-mkd bundle model=runs/mkd/train/student/weights/best.pt data=coco.yaml out=student-bundle
    """
    from yolo_mkd.deploy.bundle import bundle as run

    run(**check_names("bundle", run, arguments))


def pareto(**arguments: Any) -> None:
    """Draw a table and a plot of accuracy against latency, from reports of export, check, time and bundle.

    yolo-mkd pareto reports=runs/mkd,device/time.json out=pareto
    """
    from yolo_mkd.deploy.pareto import pareto as run
    from yolo_mkd.deploy.pareto.tables import pareto_text

    print(pareto_text(run(**{"out": "pareto", **check_names("pareto", run, arguments)})))


def report_page(**arguments: Any) -> None:
    """Write a run as one HTML page that opens anywhere: did distillation help, where, and what was learned?

    yolo-mkd report run=runs/mkd/train

    train, compare and demo write it at their end; this writes it again, also of an older run.
    """
    from yolo_mkd.evidence.page import write_page

    print(write_page(**check_names("report", write_page, arguments)))


def card(**arguments: Any) -> None:
    """Write the model card of a training, in Hugging Face's form: data, teacher, method, accuracy, latency, licence.

    yolo-mkd card run=runs/mkd/train compare=runs/mkd/compare

    train writes it at its end; this writes it again once files are exported and timed, or a gain was measured.
    """
    from yolo_mkd.evidence.card import write_card

    print(write_card(**check_names("card", write_card, arguments)))


def demo(**arguments: Any) -> None:
    """Distil, export, check and time a student on generated images, few of them labelled, and write its page.

    yolo-mkd demo
    """
    from yolo_mkd.demo import demo as run

    run(**check_names("demo", run, arguments))


def val(**arguments: Any) -> None:
    """Validate a model: Ultralytics' own val.

    yolo-mkd val model=best.pt data=coco8.yaml
    """
    run_ultralytics("val", arguments)


def predict(**arguments: Any) -> None:
    """Predict with a model: Ultralytics' own predict.

    yolo-mkd predict model=best.pt source=image.jpg
    """
    run_ultralytics("predict", arguments)


COMMANDS: dict[str, Callable[..., int | None]] = {
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
    "report": report_page,
    "card": card,
    "demo": demo,
    "val": val,
    "predict": predict,
}


def run_ultralytics(command: str, arguments: dict[str, Any]) -> None:
    """Run one of Ultralytics' own commands, its arguments checked first."""
    if "model" not in arguments:
        raise BadInput(f"model= is missing: give the model of {command}, for example model=best.pt")
    from yolo_mkd import host

    permitted = {name: arguments.pop(name) for name in ("trust", "download") if name in arguments}
    refuse_unknown(arguments, host.arguments(), command)
    host.permitting(run_checked)(command, arguments, **permitted)


def run_checked(command: str, arguments: dict[str, Any]) -> None:
    """Run one of Ultralytics' own commands on files that may be loaded.

    Raises:
        BadInput: an argument or a file cannot be used.
    """
    from ultralytics import YOLO

    from yolo_mkd import host

    host.check_arguments(arguments)
    path = host.find_model("model", arguments.pop("model"))
    if path.endswith(".pt"):
        host.refuse_code("model", path)
    else:
        host.architecture(path)
    if arguments.get("data") is not None:
        host.check_download(arguments["data"])
    try:
        getattr(YOLO(path), command)(**arguments)
    except FileNotFoundError as e:
        raise BadInput(host.one_line(e)) from e


def check_names(
    command: str, function: Callable[..., Any], arguments: dict[str, Any], passes_on: bool = False
) -> dict[str, Any]:
    """The arguments of a command, their names checked against its function's parameters.

    Args:
        command: its name, for the message.
        function: the function that runs.
        arguments: the user's.
        passes_on: the function takes further arguments and checks them itself.

    Raises:
        BadInput: an argument is missing or unknown.
    """
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    if not passes_on:
        refuse_unknown(arguments, names, command)
    for p in parameters:
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.name not in arguments:
            raise BadInput(f"{p.name}= is missing: see yolo-mkd help {command}")
    return arguments


def reports_to_compare(command: str, words: list[str]) -> list[str]:
    """The two files of `time a.json b.json`; empty for every other command line.

    Raises:
        BadInput: a report stands beside something else.
    """
    reports = [w for w in words if command == "time" and "=" not in w and w.endswith(".json")]
    if reports and not len(reports) == len(words) == 2:
        raise BadInput(
            f"time compares two reports and takes nothing beside them: write yolo-mkd time a.json b.json, not {words}"
        )
    return reports


def is_switch(word: str) -> bool:
    """Whether an argument may stand alone for true, as in `yolo`; Ultralytics is imported only where needed."""
    if isinstance(defaults().get(word), bool) or word in FLAGS:
        return True
    if not word.isidentifier():
        return False
    from yolo_mkd import host

    return isinstance(host.arguments().get(word), bool)


def usage() -> str:
    """The short help: every command with its first line."""
    lines = [
        "yolo-mkd: knowledge distillation for small YOLO detectors (M-KD)",
        "",
        "  yolo-mkd COMMAND key=value ...",
        "",
    ]
    lines += [f"  {name:<9}{(inspect.getdoc(command) or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "  yolo-mkd help COMMAND   its arguments", "  yolo-mkd version"])


def command_help(name: str) -> str:
    """The help of one command: its docstring, its own arguments, and those of training that it takes.

    Args:
        name: the command.
    """
    text = [inspect.getdoc(COMMANDS[name]) or ""]
    if name in NOT_OF_TRAINING:
        own = OWN[name] if name in OWN else options_of(function_of(name))
        text.append(listing(f"Arguments of {name}", own))
        hidden = NOT_OF_TRAINING[name] | {option.name for option in own}
        for heading, meanings in argument_sections().items():
            shown = [Option(*meaning) for meaning in meanings if meaning.name not in hidden]
            if shown:
                text.append(listing(heading, shown))
        text.append(f"{ULTRALYTICS}\nNot taken: {', '.join(sorted(ULTRALYTICS_REFUSED[name]))}")
    elif name in {"val", "predict"}:
        text.append(ULTRALYTICS)
    elif name == "time":
        from yolo_mkd.deploy.time.trtexec import ingest

        text.append(listing("Arguments with model=", options_of(function_of(name))))
        text.append(listing("Arguments with log=", options_of(ingest)))
    else:
        text.append(listing(f"Arguments of {name}", options_of(function_of(name))))
    if name == "export":
        text.append(
            "device=, opset= and simplify= are Ultralytics' own, as is every argument of a format that is not\n"
            "verified here: https://docs.ultralytics.com/modes/export"
        )
    return "\n\n".join(text)


def function_of(command: str) -> Callable[..., Any]:
    """The function that a command runs, imported."""
    if command == "demo":
        from yolo_mkd.demo import demo as function

        return function
    import yolo_mkd

    names = {"report": "write_page", "card": "write_card"}
    found: Callable[..., Any] = getattr(yolo_mkd, names.get(command, command))
    return found


def run(words: list[str]) -> int:
    """Run one command line and return its exit code.

    Raises:
        BadInput: the words cannot be used.
    """
    if not words or words[0] in HELP:
        print(command_help(known_command(words[1])) if len(words) > 1 else usage())
        return 0
    if words[0] in {"version", "--version"}:
        from yolo_mkd import __version__

        print(__version__)
        return 0
    command, rest = known_command(words[0]), words[1:]
    if any(w in HELP for w in rest):
        print(command_help(command))
        return 0
    reports = reports_to_compare(command, rest)
    if reports:
        return COMMANDS[command](*reports) or 0
    arguments = parse(rest, is_switch)
    if command in NOT_OF_TRAINING and "cfg" in arguments:
        from yolo_mkd import host

        arguments = host.with_cfg_file(arguments)
    report.check_writable("json", arguments.get("json"))
    return COMMANDS[command](**arguments) or 0


def known_command(name: str) -> str:
    """The name of a command.

    Raises:
        BadInput: there is no such command.
    """
    if name in COMMANDS:
        return name
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"available: {', '.join(COMMANDS)}"
    raise BadInput(f"unknown command '{name}'; {hint}")


def main() -> None:
    """Entry point: 0 done, 1 the work failed, 2 bad input, 130 interrupted."""
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # of a reader such as head, which has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except BadInput as e:
        print(f"yolo-mkd: {e}", file=sys.stderr)
        code = 2
    except (Failed, FloatingPointError) as e:
        print(f"yolo-mkd: {e}", file=sys.stderr)
        code = 1
    except OSError as e:
        if e.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        advice = "make room, then repeat the command; a training or comparison that has begun continues with resume="
        print(f"yolo-mkd: {e}: {advice}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("yolo-mkd: interrupted", file=sys.stderr)
        code = 130
    raise SystemExit(code)


if __name__ == "__main__":
    main()
