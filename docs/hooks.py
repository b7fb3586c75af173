"""MkDocs hooks: take the repository's own pages into the site, and write the page of arguments.

The site's root is `docs/`. README.md becomes its first page; RESULTS.md, CHANGELOG.md, CONTRIBUTING.md and the tables
under `benchmarks/` keep their paths. Links between them are the ones that work in the repository, and are rewritten.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File, Files

from yolo_mkd.settings import argument_sections
from yolo_mkd.settings.commands import OWN

ROOT = Path(__file__).parent.parent
TAKEN = ("RESULTS.md", "CHANGELOG.md", "CONTRIBUTING.md", "weights/README.md", "benchmarks/**/*")
SUFFIXES = {".md", ".png", ".json", ".csv"}
RENAMED = {"README.md": "index.md", "cfg/default.yaml": "arguments.md"}  # path in the repository: page of the site
LINK = re.compile(r"(!?)\[((?:[^][]|\[[^]]*\])*)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that do not lie in `docs/`."""
    for pattern in TAKEN:
        for path in sorted(ROOT.glob(pattern)):
            if path.suffix in SUFFIXES:
                uri = path.relative_to(ROOT).as_posix()
                files.append(File(uri, str(ROOT), config.site_dir, config.use_directory_urls))
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text(encoding="utf-8")))
    files.append(File.generated(config, "arguments.md", content=arguments_page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite links between files of the repository as links between pages; what the site lacks stays as text."""
    here = page.file.src_uri

    def rewritten(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups(default="")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        uri = site_path(posixpath.normpath(posixpath.join(posixpath.dirname(repository_path(here)), target)))
        if files.get_file_from_path(uri) is None:
            return text
        return f"{image}[{text}]({posixpath.relpath(uri, posixpath.dirname(here) or '.')}{anchor})"

    blocks = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(block if block.startswith("```") else LINK.sub(rewritten, block) for block in blocks)


def site_path(path: str) -> str:
    """The page of the site that a file of the repository is: `docs/plan.md` is `plan.md`."""
    return RENAMED.get(path, path.removeprefix("docs/"))


def repository_path(uri: str) -> str:
    """The file of the repository that a page of the site is: `plan.md` is `docs/plan.md`."""
    for path, renamed in RENAMED.items():
        if uri == renamed:
            return path
    return f"docs/{uri}" if (ROOT / "docs" / uri).exists() else uri


def arguments_page() -> str:
    """The page of arguments, from the comments of `cfg/default.yaml`, and the presets, from `cfg/presets`."""
    lines = [
        "# Arguments",
        "",
        "These are the arguments that yolo-mkd adds to those of Ultralytics' `train`; all others of Ultralytics pass",
        "through under their own names. This page is generated from `cfg/default.yaml`, which `yolo-mkd help train`",
        "prints. The arguments of the other commands are in their help (`yolo-mkd help export`) and in the",
        "[Python API](../docs/api.md).",
    ]
    for heading, meanings in argument_sections().items():
        title, _, text = heading.partition(": ") if ": " in heading else heading.partition("; ")
        lines += ["", f"## {title}", "", *([f"{text[0].upper()}{text[1:]}.", ""] if text else []), *table(meanings)]
    lines += ["", "## Arguments of single commands", "", "Commands that train also take arguments of their own:"]
    for command, options in OWN.items():
        lines += ["", f"### yolo-mkd {command}", "", *table(options)]
    lines += [
        "",
        "## Presets",
        "",
        "`preset=NAME` takes the arguments of a file in `cfg/presets`, `preset=mine.yaml` those of a file of yours.",
        "Arguments that are given beside it take precedence.",
        "",
        "| preset | meaning | arguments |",
        "|---|---|---|",
    ]
    for file in sorted((ROOT / "cfg" / "presets").glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        meaning = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
        held = yaml.safe_load(text)
        held = {**held, **held.pop("only", {})}  # `only` is a table of the terms that are on
        settings = " ".join(f"`{key}={value}`" for key, value in held.items() if value != 0 or value is False)
        lines.append(f"| `{file.stem}` | {meaning} | {settings} |")
    return "\n".join(lines) + "\n"


def table(arguments: Iterable[tuple[str, str, str]]) -> list[str]:
    """The lines of a table of arguments: name, default and meaning."""
    rows = [(f"`{name}`", f"`{default}`" if default else "required", meaning) for name, default, meaning in arguments]
    return ["| argument | default | meaning |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
