"""The README's commands are ones that the command line takes, and what it points to exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from yolo_mkd import cli, host
from yolo_mkd.deploy.time.trtexec import ingest
from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.evidence.compare import config as asking
from yolo_mkd.settings import defaults, parse, refuse_unknown

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = sorted({c.strip() for c in re.findall(rf"yolo-mkd (?:{'|'.join(cli.VERBS)}) [^`\n]*=[^`\n]*", TEXT)})


TRAINING = {  # verbs that take the arguments of train, and their own
    **{verb: {"json"} for verb in ("train", "plan", "record")},
    "cost": {"json", "rounds"},
    **{verb: {*asking.OWN, "resume"} for verb in ("compare", "ablate")},
}


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_that_the_command_line_takes(command: str) -> None:
    _, verb, *words = command.split()
    arguments = parse(words)
    if verb in {*TRAINING, "val", "predict"}:
        own = {*defaults(), *TRAINING[verb]} if verb in TRAINING else set()
        refuse_unknown(arguments, {*host.arguments(), *own}, verb)
    else:
        import yolo_mkd

        cli.known(verb, ingest if "log" in arguments else getattr(yolo_mkd, verb), arguments)


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python_examples_compile_and_name_public_things(code: str) -> None:
    import yolo_mkd

    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module == "yolo_mkd":
            assert all(hasattr(yolo_mkd, a.name) for a in node.names)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)]+)\)", TEXT))))
def test_what_it_links_to_exists(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize("verb", re.findall(r"^make (\w+)", TEXT, flags=re.MULTILINE))
def test_its_make_targets_exist(verb: str) -> None:
    assert re.search(rf"^{verb}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize(
    "name",
    [
        *TERMS,
        "preset",
        "calibrate",
        "gate",
        "teacher_imgsz",
        "record",
        "views",
        "record_limit",
        "unlabelled",
        "unlabelled_ratio",
        "assistant",
        "teacher_epochs",
    ],
)
def test_every_term_and_what_shapes_it_is_named(name: str) -> None:
    assert re.search(rf"[` ]{name}[`=]", TEXT)
