"""Run a bundle in a real browser, and compare its boxes with those that run.py must detect.

npm install onnxruntime-web
python benchmarks/browser/check.py BUNDLE node_modules/onnxruntime-web/dist [CHROMIUM]

Needs Playwright and Chromium. It serves the page, the bundle and onnxruntime-web on this machine alone. Exit code: 0
the same boxes on every sample, 1 not.
"""

from __future__ import annotations

import functools
import http.server
import json
import sys
import threading
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
from playwright.sync_api import sync_playwright

from yolo_mkd.edge.check import TOLERANCES, check_text, judge_boxes

HERE = Path(__file__).parent


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    extensions_map: ClassVar = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def check(bundle: Path, ort: Path, chromium: str) -> int:
    """Detect on the bundle's samples in the browser, print the comparison and return the exit code."""
    facts = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    expected = json.loads((bundle / "sample/expected.json").read_text(encoding="utf-8"))
    with TemporaryDirectory() as place, sync_playwright() as playwright:
        for name, target in (("bundle", bundle), ("ort", ort)):
            (Path(place) / name).symlink_to(target.resolve())
        for name in ("index.html", "detect.js"):
            (Path(place) / name).symlink_to(HERE / name)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=place))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: print(f"browser   {error}", file=sys.stderr))
        page.on("requestfailed", lambda request: print(f"browser   not loaded: {request.url}", file=sys.stderr))
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        page.wait_for_function("window.detectUrl !== undefined")
        detect = "([url, conf]) => window.detectUrl(url, conf)"
        found = [
            page.evaluate(detect, [f"./bundle/sample/{i['file']}", expected["conf"] / 2]) for i in expected["images"]
        ]
        version = browser.version
        browser.close()
        server.shutdown()
    same = sum(one["hash"] == i["canvas_sha256"] for one, i in zip(found, expected["images"], strict=True))
    pairs = [
        (i["file"], *(np.array(rows, np.float32).reshape(-1, 6) for rows in (i["boxes"], one["boxes"])))
        for one, i in zip(found, expected["images"], strict=True)
    ]
    precision = facts["model"]["precision"]
    result = judge_boxes(pairs, expected["conf"], TOLERANCES[precision])
    print(f"browser   Chromium {version}, {same} of {len(found)} samples with identical pixels")
    pixels = "identical to the bundle's" if same == len(found) else "they differ"
    print(check_text({"precision": precision, "pixels": pixels, **result}))
    print(f"{'':10}median {median(one['ms'] for one in found):.1f} ms in WebAssembly, one thread")
    return 0 if result["passed"] and same == len(found) else 1


if __name__ == "__main__":
    sys.exit(check(Path(sys.argv[1]), Path(sys.argv[2]), *(sys.argv[3:] or ["/usr/bin/chromium"])))
