"""The page of a real training and of a comparison in a real browser, from disk, without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from yolo_mkd import chain
from yolo_mkd.evidence.compare import compare
from yolo_mkd.evidence.page import write_page

pytestmark = pytest.mark.slow

SHORT = {"imgsz": 64, "epochs": 2, "batch": 8, "fraction": 0.25, "device": "cpu", "plots": False, "workers": 0}


@pytest.fixture(scope="module")
def trained(tiny_detector: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain's folder with its page, the tiny detector as teacher and as the student without a teacher."""
    folder, _ = chain.train(
        data=str(tiny_detector.data), model=str(tiny_detector.student), teacher=str(tiny_detector.pt), assistant="none",
        project=str(tmp_path_factory.mktemp("page")), name="run", **SHORT,
    )  # fmt: skip
    plain = folder.parent / "plain.pt"
    shutil.copy(tiny_detector.pt, plain)
    write_page(folder, plain=plain)
    return folder


@pytest.fixture(scope="module")
def compared(tiny_detector: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison."""
    compare(
        data=str(tiny_detector.data), model=str(tiny_detector.student), teacher=str(tiny_detector.pt), assistant="none",
        methods="plain,mkd", seeds=2, project=str(tmp_path_factory.mktemp("page")), name="run", **SHORT,
    )  # fmt: skip
    return tmp_path_factory.getbasetemp() / "page1" / "run"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, that of the system first."""
    api = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium") or shutil.which("google-chrome")
    with api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except api.Error as e:
            pytest.skip(f"no browser: {str(e).splitlines()[0]}")
        yield started
        started.close()


def opened(browser: Any, file: Path, width: int = 1280) -> tuple[Any, list[str]]:
    """A page from disk, offline, and the list that its errors and requests to other places go to."""
    page = browser.new_context(viewport={"width": width, "height": 900}, offline=True).new_page()
    errors: list[str] = []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else errors.append(r.url))
    page.goto(file.as_uri())
    return page, errors


def click_through(page: Any) -> int:
    """Open every tab and return how many pictures and charts were seen in them; each must be drawn."""
    seen = 0
    for tab in page.get_by_role("tab").all():
        tab.click()
        shown = page.locator(f"#{tab.get_attribute('aria-controls')}")
        assert shown.is_visible()
        for image in shown.locator("img").all():
            assert image.evaluate("i => i.complete && i.naturalWidth > 0 && i.getBoundingClientRect().width > 20")
            seen += 1
        for chart in shown.locator("figure.chart svg").all():
            assert chart.evaluate("s => s.getBoundingClientRect().height > 50 && s.querySelectorAll('path').length > 5")
            seen += 1
    return seen


def cells(page: Any, selector: str) -> list[list[str]]:
    """The text of a table's body, a list a row."""
    return [
        [c.strip() for c in row.locator("th,td").all_text_contents()]
        for row in page.locator(f"{selector} tbody tr").all()
    ]


def test_a_training_opens_without_network_and_every_tab_shows_its_pictures(browser: Any, trained: Path) -> None:
    assert (trained / "report.html").stat().st_size < 10e6
    page, errors = opened(browser, trained / "report.html")
    looks = json.loads((trained / "report/looks.json").read_text())
    assert [m["role"] for m in looks["models"]] == ["teacher", "plain", "student"]
    # per image: three detections, and a photo with three maps for each of six layers; two charts or more of curves
    assert click_through(page) >= len(looks["images"]) * (3 + 6 * 4) + 4
    assert errors == []


def test_the_figures_of_a_page_are_those_of_its_json(browser: Any, trained: Path) -> None:
    page, _ = opened(browser, trained / "report.html")
    looks = json.loads((trained / "report/looks.json").read_text())
    models = {m["role"]: m for m in looks["models"]}
    student, plain = models["student"], models["plain"]
    change = student["map50_95"] - plain["map50_95"]
    assert f"{student['map50_95']:.3f} mAP50-95, {change:+.3f} against" in page.locator("h1").inner_text()
    rows = {row[0]: row[1:] for row in cells(page, "#class-table")}
    for name, count in looks["tally_by_class"].items():
        scores = [f"{m['classes'][name]:.3f}" for m in looks["models"]]
        gain = f"{student['classes'][name] - plain['classes'][name]:+.3f}"
        assert rows[name] == [*scores, gain, *(str(count[key]) for key in ("objects", "won", "lost"))]
    attention = cells(page, "#attention-table")
    assert [row[1:] for row in attention] == [
        [f"{m['attention'][layer]:.2f}" for m in looks["models"][1:]] for layer in looks["layers"]
    ]
    first = page.locator(".matrix table").first.locator("tbody td").all_text_contents()
    assert first == [f"{v:.2f}" for row in models["teacher"]["relation"] for v in row]
    # the plain student is the teacher itself here, so its maps are the teacher's
    assert models["plain"]["attention"] == pytest.approx(dict.fromkeys(looks["layers"], 1), abs=0.02)
    assert looks["tally"]["reference"] - looks["tally"]["lost"] == looks["tally"]["student"] - looks["tally"]["won"]


def test_a_page_fits_a_phone(browser: Any, trained: Path, compared: Path) -> None:
    for folder in (trained, compared):
        page, errors = opened(browser, folder / "report.html", width=390)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert errors == []


def test_a_comparison_shows_its_intervals_and_links_its_trials(browser: Any, compared: Path) -> None:
    page, errors = opened(browser, compared / "report.html")
    report = json.loads((compared / "compare.json").read_text())
    change = report["rows"][1]["against"]["plain"]["map50_95"]
    text = f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
    assert text in page.locator("h1").inner_text()
    assert page.locator(".bar .text").first.inner_text() == text
    links = [link.get_attribute("href") for link in page.locator("#trials a").all()]
    assert len(links) == 4
    assert all((compared / link).is_file() for link in links)
    assert click_through(page) > 0
    assert errors == []


def test_the_page_of_an_old_run_is_made_again_from_what_lies_beside_it(trained: Path) -> None:
    moved = shutil.copytree(trained, trained.parent / "moved")
    before = (moved / "report.html").read_text()
    for file in moved.glob("*/weights/*.pt"):
        file.unlink()
    assert write_page(moved).read_text() == before.replace(f"<b>{trained.name}</b>", "<b>moved</b>").replace(
        f"<title>{trained.name}:", "<title>moved:"
    ).replace(str(trained / "plan.json"), str(moved / "plan.json"))
