"""Views: the same picture to the byte wherever and whenever it is drawn, in the order of a plain run."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ultralytics.cfg import get_cfg
from ultralytics.data.build import InfiniteDataLoader, build_dataloader, build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.yolo.detect import DetectionTrainer

from yolo_mkd.cache.views import ViewBatchSampler, Views, require_fixed_size, shown, split_code
from yolo_mkd.settings import BadInput

IMAGES, BATCH, V, EPOCHS, OPEN = 12, 4, 2, 5, 3  # mosaic is open in three of five epochs
STRONGEST: dict[str, Any] = {
    "mosaic": 1.0, "mixup": 1.0, "cutmix": 1.0, "copy_paste": 1.0, "degrees": 180.0, "translate": 0.3, "scale": 0.9,
    "shear": 40.0, "perspective": 0.001, "flipud": 0.5, "fliplr": 0.5, "bgr": 0.5, "hsv_h": 1.0, "hsv_s": 1.0,
    "hsv_v": 1.0,
}  # fmt: skip
SOMETIMES = {**STRONGEST, "mosaic": 0.5, "mixup": 0.5, "cutmix": 0.5, "copy_paste": 0.5, "copy_paste_mode": "mixup"}
PER_OBJECT = {"bboxes", "cls", "keypoints"}


def draw(root: Path) -> Path:
    """Data of two quadrangles an image, as polygons (`polygons.yaml`) and with their corners as keypoints."""
    import cv2

    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        height, width = rng.integers(40, 100, 2)
        picture = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        lines: dict[str, list[str]] = {"polygons": [], "points": []}
        for left in (0.05, 0.55):
            x, y = left + np.array([0, 0.35, 0.4, 0.05]), rng.uniform(0.1, 0.4) + np.array([0, 0.05, 0.5, 0.4])
            corners = np.stack((x, y), 1)
            cv2.fillPoly(picture, [(corners * (width, height)).astype(np.int32)], rng.integers(0, 255, 3).tolist())
            low, high = corners.min(0), corners.max(0)
            box = [*(low + high) / 2, *(high - low)]
            lines["polygons"].append(" ".join(map(str, [index % 2, *corners.ravel()])))
            lines["points"].append(" ".join(map(str, [0, *box, *np.c_[corners, [2, 2, 1, 2]].ravel()])))
        for name, rows in lines.items():
            image, label = root / name / f"images/{index:02}.png", root / name / f"labels/{index:02}.txt"
            image.parent.mkdir(parents=True, exist_ok=True)
            label.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(image), picture)
            label.write_text("\n".join(rows))
    common = {"train": "images", "val": "images", "names": {0: "even", 1: "odd"}}
    points = {"names": {0: "any"}, "kpt_shape": [4, 3], "flip_idx": [1, 0, 3, 2]}
    for name, more in (("polygons", {}), ("points", points)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump({**common, "path": str(root / name), **more}))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("views"))


def stock(root: Path, task: str = "segment", **arguments: Any) -> tuple[Any, Any]:
    """Ultralytics' own data set for training, and the arguments it was built with."""
    data = check_det_dataset(str(root / ("points.yaml" if task == "pose" else "polygons.yaml")), autodownload=False)
    args = get_cfg(overrides={"task": task, "imgsz": 64, "workers": 0, **STRONGEST, **arguments})
    return build_yolo_dataset(args, data["train"], BATCH, data), args


def viewed(root: Path, task: str = "segment", views: int = V, seed: int = 0, **arguments: Any) -> Views:
    return Views(stock(root, task, **arguments)[0], views, seed)


def closed(root: Path, views: int = V, **arguments: Any) -> Views:
    dataset, args = stock(root, **arguments)
    found = Views(dataset, views, 0)
    found.close_mosaic(copy(args))
    return found


def digests(batch: dict[str, Any]) -> dict[int, str]:
    """SHA-256 of all tensors of each picture of a batch, by code."""
    found = {}
    for i, code in enumerate(batch["code"]):
        sha = hashlib.sha256()
        for name in sorted(k for k, v in batch.items() if isinstance(v, torch.Tensor) and k != "batch_idx"):
            part = batch[name][batch["batch_idx"] == i] if name in PER_OBJECT else batch[name][i]
            sha.update(f"{name} {tuple(part.shape)} {part.dtype}".encode() + part.contiguous().numpy().tobytes())
        found[code] = sha.hexdigest()
    return found


def drawn(views: Views, places: list[tuple[int, int]] | None = None) -> dict[int, str]:
    """Pictures at these places, by default at all of them in order."""
    places = places or [(index, view) for view in range(views.views) for index in range(len(views))]
    found: dict[int, str] = {}
    for place in places:
        found.update(digests(views.collate_fn([views[place]])))
    return found


def loaded(views: Views, workers: int, epochs: int, sampler: Any = None) -> list[dict[int, str]]:
    """Pictures of each epoch through Ultralytics' loader, which fetches later epochs' batches in advance."""
    torch.manual_seed(0)
    if sampler is None:
        loader = build_dataloader(views.dataset, BATCH, workers, shuffle=True, device="cpu")
    else:
        loader = InfiniteDataLoader(
            views.dataset, BATCH, sampler=sampler, num_workers=workers, collate_fn=views.collate_fn
        )
    now = [0]
    views.install(loader, lambda: now[0])
    assert loader.num_workers == workers
    found = []
    for now[0] in range(epochs):
        if sampler is not None:
            sampler.set_epoch(now[0])
        found.append({code: digest for batch in loader for code, digest in digests(batch).items()})
    loader.close()
    return found


def test_a_code_is_read_back_as_image_and_view() -> None:
    assert [split_code(code, 12) for code in (0, 11, 12, 40)] == [(0, 0), (11, 0), (0, 1), (4, 3)]


@pytest.mark.parametrize("augmentation", [STRONGEST, SOMETIMES], ids=["strongest", "sometimes"])
@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
def test_a_view_is_the_same_in_another_order(root: Path, task: str, augmentation: dict[str, Any]) -> None:
    first = drawn(viewed(root, task, **augmentation))
    places = [(index, view) for view in range(V) for index in range(IMAGES)] * 2
    random.Random(1).shuffle(places)
    assert drawn(viewed(root, task, **augmentation), places) == first
    assert sorted(first) == list(range(V * IMAGES))


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
def test_what_is_compared_holds_objects_and_all_that_the_task_has(root: Path, task: str) -> None:
    views = viewed(root, task)
    batch = views.collate_fn([views[index, 0] for index in range(IMAGES)])
    assert len(batch["bboxes"]) > IMAGES and batch["img"].shape == (IMAGES, 3, 64, 64)
    assert {"segment": "masks", "pose": "keypoints"}.get(task, "img") in batch


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_a_cache_of_images_changes_no_view(root: Path, tmp_path: Path, cache: str) -> None:
    own = draw(tmp_path)  # the disk cache writes beside the images
    assert drawn(viewed(own, cache=cache)) == drawn(viewed(root))


def test_all_views_of_all_images_differ(root: Path) -> None:
    pictures = [*drawn(viewed(root, views=4)).values(), *drawn(closed(root, views=4)).values()]
    assert len(pictures) == len(set(pictures)) == 8 * IMAGES


def test_a_view_depends_on_the_seed_and_not_on_how_many_views_there_are(root: Path) -> None:
    two, four, other = (drawn(viewed(root, views=v, seed=s)) for v, s in ((2, 0), (4, 0), (2, 1)))
    assert two.items() <= four.items()
    assert not set(two.values()) & set(other.values())
    by_place = [{split_code(c, IMAGES)[0]: d for c, d in drawn(closed(root, v), [(3, 1)]).items()} for v in (2, 4)]
    assert by_place[0] == by_place[1]


def test_a_closed_view_is_the_same_whatever_was_drawn_before_and_has_a_code_of_its_own(root: Path) -> None:
    dataset, args = stock(root)
    views = Views(dataset, V, 0)
    before = drawn(views)
    views.close_mosaic(copy(args))
    after = drawn(views)
    assert after == drawn(closed(root))
    assert sorted(after) == [c + V * IMAGES for c in sorted(before)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_each_epoch_its_view_of_every_image(root: Path, workers: int) -> None:
    expected = drawn(viewed(root))
    for epoch, found in enumerate(loaded(viewed(root), workers, EPOCHS)):
        assert sorted(found) == [epoch % V * IMAGES + index for index in range(IMAGES)]
        assert found.items() <= expected.items()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_ranks_of_a_ddp_run_share_the_images_of_a_view(root: Path, workers: int) -> None:
    expected = drawn(viewed(root))
    ranks = []
    for rank in range(2):
        dataset = viewed(root)
        sampler = torch.utils.data.distributed.DistributedSampler(dataset, num_replicas=2, rank=rank, seed=0)
        ranks.append(loaded(dataset, workers, 3, sampler))
    for epoch in range(3):
        found = {**ranks[0][epoch], **ranks[1][epoch]}
        assert all(split_code(code, IMAGES)[1] == epoch % V for code in found)
        assert found.items() <= expected.items()
    assert len({**ranks[0][0], **ranks[1][0]}) == IMAGES


@pytest.mark.slow
def test_the_order_of_a_ddp_run_follows_the_epoch_of_each_batch() -> None:
    images = torch.utils.data.DistributedSampler(range(16), num_replicas=2, rank=0, seed=3)
    sampler = ViewBatchSampler(torch.utils.data.BatchSampler(images, 4, drop_last=False), views=9, epoch=lambda: 5)
    batches = iter(sampler)
    for epoch in (5, 6):  # a loader that prefetches is in epoch 6 before the trainer is
        images.set_epoch(epoch)
        expected = list(images)
        images.set_epoch(0)
        assert [place for _ in range(2) for place in next(batches)] == [(i, epoch) for i in expected]


def test_another_process_draws_the_same(root: Path) -> None:
    code = f"import json, pathlib, test_views as t; print(json.dumps(t.drawn(t.viewed(pathlib.Path({str(root)!r})))))"
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert {int(k): v for k, v in json.loads(run.stdout.splitlines()[-1]).items()} == drawn(viewed(root))


class Dice:
    """A data set that does nothing but draw."""

    transforms = None

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"thrown": (random.random(), np.random.rand(), torch.rand(1, dtype=torch.float64).item())}

    def close_mosaic(self, hyp: Any) -> None: ...


def test_every_generator_depends_on_image_view_seed_and_mosaic_and_on_nothing_else() -> None:
    rounds = []
    for state in (0, 1):
        random.seed(state), np.random.seed(state), torch.manual_seed(state)
        thrown = []
        for seed in (0, 1):
            views = Views(Dice(), V, seed)
            for close in (False, True):
                if close:
                    views.close_mosaic(None)
                thrown += [views[index, view]["thrown"] for index in range(6) for view in range(V)]
        rounds.append(thrown)
    assert rounds[0] == rounds[1]
    assert [len(set(values)) for values in zip(*rounds[0], strict=True)] == [2 * 2 * 6 * V] * 3


def test_random_states_are_as_if_no_view_had_been_drawn(root: Path) -> None:
    views, found = viewed(root), []
    for places in ([], [(0, 0), (5, 1)]):
        random.seed(5), np.random.seed(6), torch.manual_seed(7)
        samples = [views[place] for place in places]
        found.append((torch.initial_seed(), random.random(), np.random.rand(), torch.rand(1).item()))
    assert found[0] == found[1]
    assert len(samples) == 2


def test_random_states_are_kept_when_an_image_cannot_be_read(tmp_path: Path) -> None:
    views = viewed(draw(tmp_path))
    for file in (tmp_path / "polygons/images").glob("*.png"):
        file.unlink()
    before = random.getstate(), torch.get_rng_state()
    with pytest.raises(FileNotFoundError):
        views[0, 0]
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


class Noise:
    """As albumentations draws: from a generator of its own, which Ultralytics seeds when torch's seed has changed."""

    def __init__(self) -> None:
        self.set_random_seed(0)

    def set_random_seed(self, seed: int) -> None:
        self.seed, self.generator = seed, np.random.default_rng(seed)

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": image ^ self.generator.integers(0, 255, image.shape, dtype=np.uint8)}


def test_a_transform_with_a_generator_of_its_own_draws_the_same_twice_running(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics.data.augment import Albumentations

    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        self.p, self.transform, self.contains_spatial = 1.0, Noise(), False

    monkeypatch.setattr(Albumentations, "__init__", build)
    dataset, args = stock(root)
    views = Views(dataset, V, 0)
    for close in (False, True):
        if close:
            views.close_mosaic(copy(args))
        first, again, after = (drawn(views, places) for places in ([(2, 1)], [(2, 1)], [(3, 0), (2, 1)]))
        assert first == again
        assert first.items() <= after.items()


@pytest.mark.parametrize("arguments", [{"rect": True}, {"multi_scale": 0.5}])
def test_batches_of_a_size_of_their_own_are_refused(arguments: dict[str, Any]) -> None:
    name, value = next(iter(arguments.items()))
    with pytest.raises(BadInput, match=f"{name}={value} gives each batch its own image size.*: use {name}="):
        require_fixed_size(get_cfg(overrides=arguments))
    require_fixed_size(get_cfg(overrides={"rect": False, "multi_scale": 0.0, "cache": "ram"}))


def test_less_than_one_view_is_refused() -> None:
    with pytest.raises(BadInput, match="views=0 is too few: give 1 or more"):
        Views(Dice(), 0, 0)


class Trainer(DetectionTrainer):
    """Ultralytics' own, which keeps what each epoch's batches held and can be cut off."""

    views = V
    cut = EPOCHS

    def get_dataloader(self, *args: Any, mode: str = "train", **kwargs: Any) -> Any:
        loader = super().get_dataloader(*args, mode=mode, **kwargs)
        if mode == "train" and self.views:
            Views(loader.dataset, self.views, seed=0).install(loader, lambda: self.epoch)
        return loader

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.epoch == self.cut:
            raise KeyboardInterrupt
        files, pictures = self.seen.setdefault(self.epoch, ([], {}))
        files.extend(Path(f).name for f in batch["im_file"])
        pictures.update(digests(batch) if self.views else {})
        return super().preprocess_batch(batch)

    def final_eval(self) -> None: ...  # takes nothing of the training data


Seen = dict[int, tuple[list[str], dict[int, str]]]


def train(folder: Path, root: Path, workers: int, views: int = V, cut: int = EPOCHS, **arguments: Any) -> Seen:
    """What each epoch of a run saw: file names in order, and pictures by code."""
    common = {
        "model": folder.parent / "tiny.yaml", "data": root / "polygons.yaml", "imgsz": 64, "batch": BATCH, "nbs": BATCH,
        "epochs": EPOCHS, "close_mosaic": EPOCHS - OPEN, "workers": workers, "optimizer": "SGD", "val": False,
        "plots": False, "device": "cpu", "project": str(folder.parent), "name": folder.name, "exist_ok": True,
        **STRONGEST,
    }  # fmt: skip
    trainer = Trainer(overrides=arguments or common)
    trainer.views, trainer.cut, trainer.seen = views, cut, {}
    try:
        trainer.train()
    except KeyboardInterrupt:
        trainer.train_loader.close()
    return trainer.seen


@pytest.fixture(scope="module")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """The same run with and without views and workers, and one that is cut off in its third epoch and resumed."""
    import ultralytics

    folder = tmp_path_factory.mktemp("runs")
    whole = yaml.safe_load((Path(ultralytics.__file__).parent / "cfg/models/26/yolo26.yaml").read_text())
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**whole, "scales": {"n": [0.3, 0.05, 256]}, "nc": 2}))
    found = {
        "plain": train(folder / "plain", root, 0, views=0),
        "plain, workers": train(folder / "plain_workers", root, 2, views=0),
        "views": train(folder / "views", root, 0),
        "views, workers": train(folder / "views_workers", root, 2),
        "cut off": train(folder / "cut_off", root, 2, cut=2),
    }
    found["resumed"] = train(folder / "cut_off", root, 2, resume=str(folder / "cut_off/weights/last.pt"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "epochs"),
    [("views", [0, 1, 2, 3, 4]), ("views, workers", [0, 1, 2, 3, 4]), ("cut off", [0, 1]), ("resumed", [2, 3, 4])],
)
def test_epoch_e_of_a_run_sees_view_e_modulo_v_of_every_image(
    runs: dict[str, Seen], root: Path, run: str, epochs: list[int]
) -> None:
    expected = {**drawn(viewed(root, "detect")), **drawn(closed(root, task="detect"))}
    keys = [0, 1, 0, V + 1, V + 0]
    assert list(runs[run]) == epochs
    for epoch in epochs:
        pictures = runs[run][epoch][1]
        assert sorted(pictures) == [keys[epoch] * IMAGES + index for index in range(IMAGES)]
        assert pictures.items() <= expected.items()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["", ", workers"])
def test_images_come_in_the_order_of_a_plain_run(runs: dict[str, Seen], workers: str) -> None:
    orders = [[files for files, _ in runs[name + workers].values()] for name in ("plain", "views")]
    assert orders[0] == orders[1]
    assert len(set(map(tuple, orders[0]))) == EPOCHS


@pytest.mark.slow
def test_codes_name_the_images_of_their_batch(runs: dict[str, Seen]) -> None:
    for files, pictures in runs["views"].values():
        assert [int(Path(f).stem) for f in files] == [split_code(code, IMAGES)[0] for code in pictures]


def test_the_views_that_a_run_shows_are_counted_once_open_and_closed() -> None:
    assert shown(3, 0, 90, 90) == [0, 1, 2] and shown(30, 0, 10, 90) == list(range(10))
    assert shown(3, 0, 10, 8) == [0, 1, 2, 3, 5] and shown(3, 5, 7, 8) == [0, 2]  # 8 and 9 show 2 and 0, closed
