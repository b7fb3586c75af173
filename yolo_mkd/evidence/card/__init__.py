"""The model card of a training: Hugging Face's form, YAML and Markdown, from chain.yaml and the reports beside it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from yolo_mkd import chain as chains
from yolo_mkd import report
from yolo_mkd.chain import Chain
from yolo_mkd.evidence.card.facts import card_facts
from yolo_mkd.evidence.card.interval import find_intervals
from yolo_mkd.evidence.page import find_sources, refusing_misfits
from yolo_mkd.host import LOGGER
from yolo_mkd.settings import BadInput, file_path

FILE = "card.md"


def write_card(run: str | Path, compare: str | Path | None = None, out: str | Path | None = None) -> Path:
    """Write the model card of a finished training.

    Args:
        run: the folder of a training or a demo; reports of export and time in it give sizes and latencies.
        compare: the folder of a comparison of the same student, teacher, data and settings, which gives intervals.
        out: the file to write, by default card.md in the run's folder; on Hugging Face it is named README.md.

    Returns:
        The card's file.

    Raises:
        BadInput: the folder holds no finished training, or the comparison is of something else.
    """
    folder = file_path("run", run, "runs/mkd/train")
    place = folder / FILE if out is None else file_path("out", out, "README.md")
    report.check_writable("out", place)
    sources = find_sources(folder, None)
    if sources.kind == "comparison":
        raise BadInput(f"run={folder} is a comparison: give the folder of a training, and the comparison as compare=")
    chain = cast(Chain, sources.document)
    for stage in chain["stages"]:
        if stage["status"] != "done":
            raise BadInput(
                f"run={folder} is unfinished (stage {stage['name']}): continue it with yolo-mkd train resume={folder}"
            )
    intervals = [] if compare is None else find_intervals(file_path("compare", compare, "runs/mkd/compare"), chain)
    with refusing_misfits(folder):
        text = render(chain, folder, intervals)
    return report.write_text(place, text)


def render(chain: Chain, folder: Path, intervals: list[list[str]]) -> str:
    """The card as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, undefined=jinja2.StrictUndefined, autoescape=False,
    )  # fmt: skip  # Markdown, in which card_facts has escaped names
    return environment.get_template("card.md").render(card=card_facts(chain, folder, intervals))


def write_card_after(run: Path) -> None:
    """Write the card at the end of a training; a failure is a warning, not the training's."""
    try:
        file = write_card(run)
    except Exception as e:  # the run is finished and stored: nothing may turn it into a failure
        LOGGER.warning(f"M-KD: the model card could not be written ({type(e).__name__}: {e})")
        return
    LOGGER.info(f"M-KD: model card: {chains.shortest(file)}")
