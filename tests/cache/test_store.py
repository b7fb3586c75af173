"""The teacher cache on disk survives kills and damage, and is refused where it was built with other settings."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from yolo_mkd.cache.codec import Layout
from yolo_mkd.cache.store import SHARD, STALE_S, Store, estimate, fingerprint, shard_header
from yolo_mkd.host import LOGGER
from yolo_mkd.settings import BadInput

LAYOUT = Layout(3, {8: (8, 8), 16: (4, 4)}, ("one2many",), {"neck_p3": (8, 8), "neck_p4": (4, 4)}, top=20)
HEADER = {
    "teacher": "a" * 64,
    "data": "b" * 64,
    "imgsz": 640,
    "views": 8,
    "seed": 0,
    "augmentation": {"mosaic": 1.0, "scale": 0.5},
    "versions": {"torch": "2.5.0"},
    "layout": LAYOUT.described(),
}


@pytest.fixture(autouse=True)
def caught_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOGGER, "propagate", True)  # to pytest's handler


def entries(codes: range | list[int]) -> np.ndarray:
    """Entries whose every byte but the code's follows from the code."""
    made = np.zeros(len(codes), LAYOUT.dtype)
    for entry, code in zip(made, codes, strict=True):
        entry["maps"]["neck_p3"] = code % 251
        entry["one2many"]["score"] = code % 2048
    made["code"] = codes
    return made


def reopen(folder: Path) -> Store:
    return Store.open(folder, HEADER, LAYOUT)


def filled(folder: Path, codes: range) -> Store:
    store = reopen(folder)
    store.put(entries(codes))
    store.close()
    return reopen(folder)


def test_an_empty_store_has_nothing(tmp_path: Path) -> None:
    store = reopen(tmp_path / "new")
    assert len(store) == 0 and store.bytes_on_disk == 0
    assert store.missing([3, 1]) == [0, 1]
    with pytest.raises(KeyError):
        store.get([3])
    store.close()
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["record.json"]


def test_entries_come_back_in_the_order_of_the_codes(tmp_path: Path) -> None:
    store = filled(tmp_path, range(2 * SHARD + 10))
    codes = [SHARD, 0, 2 * SHARD + 9, 7, 7]
    assert store.get(codes).tobytes() == entries(codes).tobytes()
    assert len(store) == 2 * SHARD + 10
    assert store.missing([5, 2 * SHARD + 10, SHARD]) == [1]
    assert store.has(5) and not store.has(2 * SHARD + 10)


def test_pending_entries_can_be_read_before_and_after_they_are_written(tmp_path: Path) -> None:
    store = reopen(tmp_path)
    codes = [2**64 - 1, 5, 2**53 + 1]
    store.put(entries(codes))
    assert len(store) == 3 and not list(tmp_path.glob("*.npy"))
    assert store.get(codes[::-1]).tobytes() == entries(codes[::-1]).tobytes()
    store.flush()
    assert len(list(tmp_path.glob("*.npy"))) == 1
    assert store.get(codes).tobytes() == entries(codes).tobytes()
    store.put(entries([9]))
    assert store.get([9, 5]).tobytes() == entries([9, 5]).tobytes()


def test_returned_entries_are_copies(tmp_path: Path) -> None:
    store = reopen(tmp_path)
    given = entries([1])
    store.put(given)
    given["peaks"] = 7
    store.get([1])["peaks"] = 8
    assert not store.get([1])["peaks"].any()


def test_a_shard_is_a_plain_numpy_file(tmp_path: Path) -> None:
    filled(tmp_path, range(7))
    (file,) = tmp_path.glob("*.npy")
    loaded = np.load(file, allow_pickle=False)
    assert loaded.dtype == LAYOUT.dtype
    assert loaded.tobytes() == entries(range(7)).tobytes()


def test_a_view_put_twice_is_stored_once(tmp_path: Path) -> None:
    store = reopen(tmp_path)
    store.put(entries([1, 1, 2]))
    store.flush()
    store.put(entries([1, 2]))
    store.close()
    assert [len(np.load(f)) for f in tmp_path.glob("*.npy")] == [2]


@pytest.mark.parametrize("name", ["teacher", "data", "imgsz", "views", "seed"])
def test_a_store_with_other_settings_is_refused(tmp_path: Path, name: str) -> None:
    reopen(tmp_path)
    with pytest.raises(BadInput, match=rf"^record=[^\n]*\({name}: it has [^\n]+, this run 320\): [^\n]*$"):
        Store.open(tmp_path, {**HEADER, name: 320}, LAYOUT)


@pytest.mark.parametrize(
    ("inner", "change", "message"),
    [
        ("augmentation", {"mosaic": 0.5}, "augmentation.mosaic: it has 1.0, this run 0.5"),
        ("augmentation", {"mixup": 0.1}, "augmentation.mixup: it has null, this run 0.1"),
        ("versions", {"torch": "2.6.0"}, 'versions.torch: it has "2.5.0", this run "2.6.0"'),
        ("layout", {"top": 30}, "layout.top: it has 20, this run 30"),
    ],
)
def test_the_error_names_the_inner_value(tmp_path: Path, inner: str, change: dict[str, object], message: str) -> None:
    reopen(tmp_path)
    header = {**HEADER, inner: {**HEADER[inner], **change}}  # type: ignore[dict-item]
    with pytest.raises(BadInput) as refused:
        Store.open(tmp_path, header, LAYOUT)
    assert f"({message})" in str(refused.value)


def test_a_value_missing_in_this_run_is_a_difference_too(tmp_path: Path) -> None:
    reopen(tmp_path)
    with pytest.raises(BadInput, match="seed: it has 0, this run null"):
        Store.open(tmp_path, {k: v for k, v in HEADER.items() if k != "seed"}, LAYOUT)


def test_the_error_for_many_differences_stays_short(tmp_path: Path) -> None:
    reopen(tmp_path)
    with pytest.raises(BadInput, match="and 5 more") as refused:
        Store.open(tmp_path, dict.fromkeys(HEADER, "x" * 500), LAYOUT)
    assert len(str(refused.value)) < 500 + len(str(tmp_path))


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"precious")
    with pytest.raises(BadInput, match="exists but is not a teacher cache"):
        reopen(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["photo.png"]
    with pytest.raises(BadInput, match="exists but is not a teacher cache"):
        reopen(tmp_path / "photo.png")


@pytest.mark.parametrize("content", ["", "{", "[1]", "7"])
def test_an_unreadable_header_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(BadInput, match=r"^[^\n]*record.json cannot be read[^\n]*$"):
        reopen(tmp_path)


def test_a_run_killed_before_the_header_was_complete_leaves_a_usable_folder(tmp_path: Path) -> None:
    (tmp_path / "record.json.0.part").write_text("{")
    assert len(reopen(tmp_path)) == 0


def spoil(file: Path, how: str) -> None:
    whole = file.read_bytes()
    if how == "truncated":
        file.write_bytes(whole[:-1])
    elif how == "only half a header":
        file.write_bytes(whole[:40])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "noise":
        file.write_bytes(os.urandom(2000))
    elif how == "a header of noise":
        file.write_bytes(whole[:12] + bytes(reversed(whole[12:])))
    elif how == "another type":
        np.save(file, np.zeros(3, np.float32))
    elif how == "another shape":
        np.save(file, np.zeros((2, 2), LAYOUT.dtype))
    elif how == "pickled":
        np.save(file, np.array([{}]), allow_pickle=True)
    elif how == "a byte too long":
        file.write_bytes(whole + b"0")
    else:
        file.unlink()
        file.mkdir()


@pytest.mark.parametrize(
    "how",
    ["truncated", "only half a header", "empty", "noise", "a header of noise", "another type", "another shape",
     "pickled", "a byte too long", "a folder"],
)  # fmt: skip
def test_a_damaged_shard_is_skipped_and_logged(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path, range(SHARD + 5)).close()
    small, large = sorted(tmp_path.glob("*.npy"), key=lambda f: f.stat().st_size)
    spoil(large, how)
    with caplog.at_level(logging.WARNING, LOGGER.name):
        store = reopen(tmp_path)
    assert [large.name in r.getMessage() for r in caplog.records] == [True]
    assert len(store) == 5 and store.bytes_on_disk == small.stat().st_size
    assert store.missing(range(SHARD + 5)) == list(range(SHARD))
    store.put(entries(range(SHARD)))
    assert store.get(range(SHARD + 5)).tobytes() == entries(range(SHARD + 5)).tobytes()


def flip(file: Path, at: int) -> None:
    """Turn over one bit of a file, as a failing disk does: size and time of change stay."""
    content, times = bytearray(file.read_bytes()), file.stat()
    content[at] ^= 4
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


HEAD = len(shard_header(LAYOUT, 0))


@pytest.mark.parametrize("at", [8, LAYOUT.bytes // 2, LAYOUT.bytes - 1], ids=["first byte", "inside", "last byte"])
def test_an_entry_with_a_flipped_bit_is_found_and_replaced_for_good(tmp_path: Path, at: int) -> None:
    filled(tmp_path, range(9)).close()
    (file,) = tmp_path.glob("*.npy")
    flip(file, HEAD + 3 * LAYOUT.bytes + at)
    store = reopen(tmp_path)
    assert store.has(3)  # nothing has read it yet
    assert store.missing([2, 3, 4, 99]) == [1, 3]
    assert store.damaged == [3] and len(store) == 8
    with pytest.raises(KeyError):
        store.get([3])
    store.put(entries([3]))
    store.close()
    again = reopen(tmp_path)
    assert again.missing(range(9)) == again.damaged == []
    assert again.get(range(9)).tobytes() == entries(range(9)).tobytes()


def test_an_entry_whose_code_was_flipped_is_never_taken_for_another_view(tmp_path: Path) -> None:
    filled(tmp_path, range(9)).close()
    (file,) = tmp_path.glob("*.npy")
    flip(file, HEAD + 2 * LAYOUT.bytes)  # the code 2 becomes 6
    store = reopen(tmp_path)
    assert sorted(store.missing(range(9))) in ([2], [2, 6])
    for code in set(range(9)) - {2, 6}:
        assert store.get([code]).tobytes() == entries([code]).tobytes()
    if store.has(6):
        assert store.get([6]).tobytes() == entries([6]).tobytes()


def test_a_damaged_checksum_costs_its_entry_alone(tmp_path: Path) -> None:
    filled(tmp_path, range(9)).close()
    (file,) = tmp_path.glob("*.npy")
    flip(file, HEAD + 9 * LAYOUT.bytes + 4 * 7)
    assert reopen(tmp_path).missing(range(9)) == [7]


def test_a_shard_without_checksums_as_earlier_versions_wrote_it_can_be_read(tmp_path: Path) -> None:
    filled(tmp_path, range(SHARD)).close()
    (file,) = tmp_path.glob("*.npy")
    file.write_bytes(file.read_bytes()[: -4 * SHARD])
    store = reopen(tmp_path)
    assert len(store) == SHARD and store.warnings == []
    assert store.missing(range(SHARD)) == []
    assert store.get(range(SHARD)).tobytes() == entries(range(SHARD)).tobytes()


def test_leftovers_of_a_kill_go_and_what_another_run_is_writing_stays(tmp_path: Path) -> None:
    reopen(tmp_path)
    old, young = tmp_path / "old.npy.part", tmp_path / "young.npy.part"
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - STALE_S - 5,) * 2)
    reopen(tmp_path)
    assert not old.exists() and young.exists()


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_store import SHARD, entries, reopen
store = reopen(Path({folder!r}))
print("ready", flush=True)
for first in range({first}, {last}, 16):
    store.put(entries(range(first, first + 16)))
    print(first + 16, flush=True)
store.close()
"""


def writer(folder: Path, first: int, last: int) -> subprocess.Popen[str]:
    code = WRITER.format(here=str(Path(__file__).parent), folder=str(folder), first=first, last=last)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("lines", [1, 17, 40])
def test_a_kill_loses_at_most_the_pending_shard(tmp_path: Path, lines: int) -> None:
    process = writer(tmp_path, 0, 10**9)
    assert process.stdout is not None
    lines_read = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    lines_read += process.stdout.read().splitlines(keepends=True)
    process.wait()
    process.stdout.close()
    done = max([0, *(int(line) for line in lines_read if line.endswith("\n") and line.strip().isdigit())])
    store = reopen(tmp_path)
    assert len(store) >= done - SHARD
    assert len(store) % SHARD == 0
    assert store.get(range(len(store))).tobytes() == entries(range(len(store))).tobytes()


@pytest.mark.slow
def test_two_runs_may_write_one_folder_at_once(tmp_path: Path) -> None:
    both = [writer(tmp_path, 0, 1600), writer(tmp_path, 800, 2400)]  # half of their views are the same
    for process in both:
        process.communicate()
    assert [p.returncode for p in both] == [0, 0]
    store = reopen(tmp_path)
    assert len(store) == 2400
    assert store.get(range(2400)).tobytes() == entries(range(2400)).tobytes()
    assert not list(tmp_path.glob("*.part"))


def test_nothing_is_stored_beyond_the_limit_and_that_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limit = estimate(LAYOUT, 300, 1)
    store = Store.open(tmp_path, HEADER, LAYOUT, limit)
    with caplog.at_level(logging.WARNING, LOGGER.name):
        for first in range(0, 320, 8):
            store.put(entries(range(first, first + 8)))
    assert store.full and len(store) == 300
    assert ["limit" in r.getMessage() for r in caplog.records] == [True]
    store.close()
    assert sum(f.stat().st_size for f in tmp_path.glob("*.npy")) == limit
    again = Store.open(tmp_path, HEADER, LAYOUT, limit)
    assert not again.full and again.bytes_on_disk == limit
    again.put(entries([999]))
    assert again.full and again.missing([999, 299]) == [0]
    assert again.get([299, 0]).tobytes() == entries([299, 0]).tobytes()


def test_a_full_disk_ends_the_storing_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled(tmp_path, range(10))

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with caplog.at_level(logging.WARNING, LOGGER.name):
        store.put(entries(range(10, SHARD + 20)))
    assert store.full and ["No space left" in r.getMessage() for r in caplog.records] == [True]
    assert store.get([3, SHARD + 9]).tobytes() == entries([3, SHARD + 9]).tobytes()  # still pending
    assert store.missing([SHARD + 9, SHARD + 10]) == [1]
    assert len(list(tmp_path.iterdir())) == 2  # no half-written file


@pytest.mark.parametrize("views", [1, 5])
def test_the_estimate_is_within_ten_percent(tmp_path: Path, views: int) -> None:
    filled(tmp_path, range(150 * views))
    taken = sum(f.stat().st_size for f in tmp_path.iterdir())
    assert estimate(LAYOUT, 150, views) == pytest.approx(taken, rel=0.1)
    assert estimate(LAYOUT, 0, views) == 0


def dataset(root: Path) -> tuple[list[Path], list[Path]]:
    images, labels = [], []
    for name in ("train/a", "train/b", "more/a"):
        images.append(root / "images" / f"{name}.jpg")
        labels.append(root / "labels" / f"{name}.txt")
        for file, text in ((images[-1], f"picture {name}"), (labels[-1], "0 .5 .5 .1 .1\n")):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return images, labels


def test_a_fingerprint_follows_names_sizes_labels_and_order_but_not_the_place(tmp_path: Path) -> None:
    images, labels = dataset(tmp_path / "here")
    first = fingerprint(images, labels)
    assert fingerprint(*dataset(tmp_path / "there" / "deeper")) == first
    seen = {first, fingerprint(images[::-1], labels[::-1]), fingerprint(images[:2], labels[:2])}
    labels[0].write_text("1 .5 .5 .1 .1\n")
    seen.add(fingerprint(images, labels))
    labels[0].unlink()
    without = fingerprint(images, labels)
    labels[0].write_text("")
    assert fingerprint(images, labels) == without
    images[0].write_text("a larger picture")
    seen |= {without, fingerprint(images, labels)}
    images[0] = images[0].rename(images[0].with_name("c.jpg"))
    seen.add(fingerprint(images, labels))
    assert len(seen) == 7


def test_throughput(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.perf_counter()
    store = filled(tmp_path, range(4 * SHARD))
    written = time.perf_counter()
    for first in range(0, 4 * SHARD, 16):
        assert len(store.get(range(first, first + 16))) == 16
    read = time.perf_counter()
    with capsys.disabled():
        print(f"\n  {4 * SHARD} entries of {LAYOUT.bytes} B: put {written - started:.2f} s, get {read - written:.2f} s")
