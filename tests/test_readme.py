"""README and documentation: their commands are accepted, their examples compile, and what they name exists."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import yolo_mkd
from yolo_mkd import cli, host
from yolo_mkd.deploy.time.trtexec import ingest
from yolo_mkd.distill.distiller import TERMS
from yolo_mkd.settings import defaults, parse, refuse_unknown
from yolo_mkd.settings.commands import NOT_OF_TRAINING, OWN, ULTRALYTICS_REFUSED

ROOT = Path(__file__).parents[1]
GUIDES = ["README.md", "CONTRIBUTING.md", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md"))]
TABLES = ["RESULTS.md", "CHANGELOG.md", "weights/README.md", "benchmarks/cost.md", "benchmarks/views.md"]
TABLES += ["benchmarks/finetune/earlier.md", "benchmarks/pareto/pareto.md"]
PAGES = [*GUIDES, *TABLES]
# files, make targets and presets of the new layout that are not there yet
EXAMPLES = {
    "yolo_mkd/knowledge/variance.py",
    "tests/knowledge/test_variance.py",
    "yolo_mkd/x/y.py",
    "tests/x/test_y.py",
}

# What the command line takes: the only part of this file that depends on how it is made
COMMANDS = cli.COMMANDS


def refuse_unknown_arguments(name: str, words: list[str]) -> None:
    """Raise BadInput if a command does not take these words, without running it."""
    arguments = parse(words)
    if name in {*NOT_OF_TRAINING, "val", "predict"}:
        options = cli.options_of(cli.function_of("cost")) if name == "cost" else OWN.get(name, ())
        own = {option.name for option in options} | {*defaults()} - NOT_OF_TRAINING.get(name, {*defaults()})
        refuse_unknown(arguments, own | {*host.arguments()} - ULTRALYTICS_REFUSED.get(name, set()), name)
    else:
        cli.check_names(name, ingest if "log" in arguments else cli.function_of(name), arguments)


@cache
def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[tuple[str, str]]:
    """The language and content of each fenced block."""
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text(page), flags=re.DOTALL | re.MULTILINE)


def prose(page: str) -> str:
    """The text outside of fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", text(page), flags=re.DOTALL | re.MULTILINE)


def code(page: str) -> list[str]:
    """Every line of a shell block without its comment, and every inline code span, on one line each."""
    lines = [line for language, block in blocks(page) if language == "sh" for line in block.splitlines()]
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines] + [" ".join(c.split()) for c in spans(page)]


def spans(page: str) -> list[str]:
    """The inline code spans."""
    return re.findall(r"`([^`]+)`", prose(page))


def links(page: str) -> list[str]:
    """The targets of the page's links and pictures within the repository, with their anchors."""
    return sorted(set(re.findall(r"\]\((?!\w+:)([^)\s]+)\)", prose(page))))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.replace("`", "")).lower().replace(" ", "-") for h in headings}


def named(wanted: str, pages: list[str] = PAGES) -> list[tuple[str, str]]:
    """Pages and the pieces of code in them that match."""
    return sorted({(page, c) for page in pages for c in code(page) if re.match(wanted, c)})


YOLO_MKD = [(page, command) for page, command in named(r"yolo-mkd [a-z]") if "..." not in command.split("=")]


def test_there_are_commands_to_check() -> None:
    assert {command.split()[1] for _, command in YOLO_MKD} >= {*COMMANDS, "help", "version"} - {"val", "predict"}


@pytest.mark.parametrize(("page", "command"), YOLO_MKD)
def test_a_command_is_accepted_by_the_command_line(page: str, command: str) -> None:
    _, name, *words = command.split()
    if name == "help":
        assert all(word in COMMANDS for word in words)
    elif name != "version":
        assert name in COMMANDS
        reports = name == "time" and len(words) == 2 and all(word.endswith(".json") for word in words)
        if words and not reports:  # a command that is named in a sentence has no arguments
            refuse_unknown_arguments(name, words)


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_compile_and_import_public_names(page: str) -> None:
    for language, block in blocks(page):
        if language == "python":
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module == "yolo_mkd":
                    assert all(hasattr(yolo_mkd, alias.name) for alias in node.names)


@pytest.mark.parametrize("page", PAGES)
def test_yaml_examples_can_be_read(page: str) -> None:
    for language, block in blocks(page):
        if language in {"yaml", "yml"}:
            assert yaml.safe_load(block)


@pytest.mark.parametrize(("page", "target"), [(page, target) for page in PAGES for target in links(page)])
def test_a_link_has_a_target(page: str, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists() or path in {"arguments.md"}
    assert not anchor or anchor in anchors(file)


@pytest.mark.parametrize(
    ("page", "path"),
    [(page, span) for page in GUIDES for span in sorted(set(spans(page))) if re.fullmatch(r"[\w.-]+(/[\w.-]*)+", span)],
)
def test_a_file_that_is_named_exists(page: str, path: str) -> None:
    top = {"yolo_mkd", "cfg", "docs", "tests", "benchmarks", "weights"}
    if path.split("/")[0] in top | {p.name for p in (ROOT / "yolo_mkd").iterdir() if p.is_dir()}:
        assert (ROOT / path).exists() or (ROOT / "yolo_mkd" / path).exists() or path in EXAMPLES


@pytest.mark.parametrize(("page", "command"), named(r"make \w+$"))
def test_a_make_target_exists(page: str, command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", text("Makefile"), flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "preset"),
    sorted({(page, name) for page in GUIDES for c in code(page) for name in re.findall(r"\bpreset=(\w+)(?!\w*\.)", c)}),
)
def test_a_preset_exists(page: str, preset: str) -> None:
    assert (ROOT / "cfg" / "presets" / f"{preset}.yaml").exists()


@pytest.mark.parametrize("page", GUIDES)
def test_prose_is_plain_technical_english(page: str) -> None:
    quaint = r"\b(speaks?|spoken?|hears?|heard|silent(ly)?|silence|torn|lessons?|wish(es)?)\b|\bis no [a-z]+:"
    assert not re.findall(quaint, prose(page), flags=re.IGNORECASE)


def test_the_readme_is_short() -> None:
    assert len(text("README.md").split()) <= 950


@pytest.mark.parametrize("name", defaults())
def test_every_argument_of_training_is_on_the_arguments_page(name: str) -> None:
    assert f"| `{name}` | `" in arguments_page()


@pytest.mark.parametrize("preset", sorted(p.stem for p in (ROOT / "cfg" / "presets").glob("*.yaml")))
def test_every_preset_is_on_the_arguments_page(preset: str) -> None:
    assert f"| `{preset}` | " in arguments_page()


@cache
def arguments_page() -> str:
    page: str = hooks().arguments_page()
    return page


def hooks() -> ModuleType:
    """docs/hooks.py, which needs the packages of the extra `docs`."""
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted({*yolo_mkd.__all__} - {"__version__", "BadInput"}))
def test_every_public_name_is_in_the_api_reference(name: str) -> None:
    assert f"\n::: yolo_mkd.{yolo_mkd.HOMES[name]}.{name}\n" in text("docs/api.md")


def test_the_table_of_terms_names_every_term_of_the_paper() -> None:
    paper = [name for name in TERMS if defaults()[name]]
    assert re.findall(r"^\| `(\w+)` \|", text("README.md"), flags=re.MULTILINE) == paper


@pytest.mark.parametrize("form", ["bug", "feature", "question"])
def test_an_issue_form_requests_version_and_command(form: str) -> None:
    body = yaml.safe_load(text(f".github/ISSUE_TEMPLATE/{form}.yml"))["body"]
    fields = {field["id"]: field for field in body}
    assert {"version", "command"} <= set(fields)
    assert "yolo-mkd version" in fields["version"]["attributes"]["description"]


def test_results_begin_with_a_summary_of_at_most_15_lines() -> None:
    summary, _, sections = text("RESULTS.md").partition("\n## ")
    rows = [line for line in summary.splitlines() if line.startswith("|")]
    figures = {f.lstrip("+") for row in rows for f in re.findall(r"[+-]\d\.\d{3}", row)}
    assert 8 <= len(rows) <= 15
    assert all(figure in sections for figure in figures), "a figure of the summary stands in no section"
