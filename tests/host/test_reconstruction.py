"""Layers of a sliced student that are fitted to those of its teacher."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.nn.modules.conv import Conv, DWConv

from yolo_mkd import host
from yolo_mkd.host import reconstruction
from yolo_mkd.host.reconstruction import FEWEST, Target, fit, read_squares, reconstruct, ridge, score_map
from yolo_mkd.host.slicing import ABSENT, start_from


def model_of(name: str, classes: int = 3, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return host.build(host.find_model("model", name), classes)


def trained_like(model: Any, images: torch.Tensor) -> Any:
    """The model with the statistics of some images, so that its activations neither vanish nor explode."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data.uniform_(0.5, 1.5)
            m.bias.data.normal_(0, 0.3)
            m.momentum = None
    model.train()
    with torch.no_grad():
        model(images)
    return model.eval()


def raw_outputs(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        raw = model.eval()(x)[1]
    return [part[key] for part in (raw["one2many"], raw["one2one"]) for key in ("boxes", "scores")]


def distance(student: Any, teacher: Any, x: torch.Tensor, classes: list[int]) -> float:
    """Relative squared distance of the raw outputs."""
    total = 0.0
    for ours, theirs in zip(raw_outputs(student, x), raw_outputs(teacher, x), strict=True):
        if theirs.shape[1] == len(teacher.names):
            ours, theirs = (
                ours[:, [i for i, c in enumerate(classes) if c >= 0]],
                theirs[:, [c for c in classes if c >= 0]],
            )
        centred = theirs - theirs.mean((0, 2), keepdim=True)
        total += float((ours - theirs).square().mean() / centred.square().mean())
    return total / 4


def test_ridge_regression_has_its_closed_form() -> None:
    x = torch.tensor([[[1.0], [-1.0], [2.0], [-2.0]]])
    start = torch.tensor([[[5.0]]])
    strength = reconstruction.RIDGE * 10  # of the sum of squares, 10
    expected = (3 * 10 + strength * 5) / (10 + strength)
    assert ridge(x, 3 * x, start).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["plain", "depthwise", "linear"])
def test_a_layer_that_can_equal_its_target_does(kind: str) -> None:
    torch.manual_seed(0)
    layers = {
        "plain": lambda: Conv(4, 6, 3),
        "depthwise": lambda: DWConv(6, 6, 3),
        "linear": lambda: nn.Conv2d(4, 6, 1),
    }
    ours, theirs = layers[kind]().eval(), layers[kind]().eval()
    x = torch.randn(3, 6 if kind == "depthwise" else 4, 8, 8)
    before = nn.Sequential(theirs.conv, theirs.bn) if hasattr(theirs, "bn") else theirs
    mine = nn.Sequential(ours.conv, ours.bn) if hasattr(ours, "bn") else ours
    with torch.no_grad():
        out = before(x)
        size = 1 if kind == "linear" else 3
        windows = nn.functional.unfold(x, size, padding=size // 2).permute(0, 2, 1).reshape(-1, x.shape[1], size, size)
        values = out.flatten(2).permute(0, 2, 1).reshape(-1, 6)
        held = torch.tensor([True] * 5 + [False])
        last = (ours.conv if hasattr(ours, "bn") else ours).weight[5].clone()
        norms = [m.weight.flatten(1).norm(dim=1) for m in ours.modules() if isinstance(m, nn.Conv2d)]
        even = torch.arange(len(values)) % 2 == 0
        places = (torch.zeros(0),) * 4  # where they are does not matter here
        explained = fit(ours, held, windows, Target(places, values[:, held], even))
        assert explained > 0.999
        assert torch.allclose(mine(x)[:, :5], out[:, :5], atol=0.02 * float(out.std()))
        assert torch.equal((ours.conv if hasattr(ours, "bn") else ours).weight[5], last)
        if hasattr(ours, "bn"):  # the scale of the weights, which decides how far an optimiser's step goes
            assert torch.allclose(ours.conv.weight.flatten(1).norm(dim=1), norms[0], rtol=1e-4)
        if hasattr(ours, "bn"):  # the statistics are those of the evenly drawn positions
            z = ours.conv(x).flatten(2).permute(0, 2, 1).reshape(-1, 6)[even][:, :5]
            assert torch.allclose(ours.bn.running_mean[:5], z.mean(0), atol=1e-4)
            assert torch.allclose(ours.bn.running_var[:5], z.var(0), rtol=1e-3)


def test_the_score_map_has_the_best_class_of_all_levels_at_the_finest() -> None:
    fine, coarse = torch.full((1, 2, 4, 4), -3.0), torch.full((1, 2, 2, 2), -3.0)
    fine[0, 1, 0, 0], coarse[0, 0, 1, 1] = 2.0, 1.0
    scores = torch.cat([fine.flatten(2), coarse.flatten(2)], 2)
    found = score_map({"one2many": {"scores": scores, "feats": [fine, coarse]}})[0, 0]
    low = 1 / (1 + math.exp(3))
    expected = torch.full((4, 4), low)
    expected[0, 0], expected[2:, 2:] = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    assert torch.allclose(found, expected)


def test_a_copy_explains_everything_and_a_narrow_student_comes_nearer_to_its_teacher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconstruction, "POSITIONS", 512)
    torch.manual_seed(0)
    images = nn.functional.interpolate(torch.rand(12, 3, 12, 12), size=(32, 32), mode="bilinear")
    teacher = trained_like(model_of("yolo26n.yaml", 3), images)
    copy, same = model_of("yolo26n.yaml", 3, seed=1), [0, 1, 2]
    _, pairs = start_from(copy, teacher, same, sliced=True)
    assert reconstruct(copy, teacher, pairs, images) > 0.999
    assert distance(copy, teacher, images[:4], same) < 0.01

    classes = [2, ABSENT, 0]
    narrow = model_of("yolo26n-w125.yaml", 3, seed=1)
    _, pairs = start_from(narrow, teacher, classes, sliced=True)
    own = narrow.model[-1].cv3[0][-1].bias[1].clone()
    modes = [m.training for m in narrow.modules()]
    before = distance(narrow, teacher, images, classes)
    narrow.train()
    explained = reconstruct(narrow, teacher, pairs, images)
    assert [m.training for m in narrow.modules()] == [True] * len(modes)
    assert 0.3 < explained < 1
    assert distance(narrow, teacher, images, classes) < 0.8 * before
    assert narrow.model[-1].cv3[0][-1].bias[1] == own  # of a class that the teacher lacks


def test_images_are_evenly_spaced_in_grey_squares(tmp_path: Path) -> None:
    files = []
    for i in range(2 * FEWEST):
        files.append(tmp_path / f"{i:02}.png")
        cv2.imwrite(str(files[-1]), np.full((8, 16, 3), (0, 0, i), np.uint8))  # B G R
    files[2].write_bytes(b"no image")
    images = read_squares(files, 640)  # so large that the fewest are read
    assert images is not None
    assert images.shape == (FEWEST - 1, 3, 640, 640)
    middle = (images[:, :, 320, 320] * 255).round().int().tolist()
    assert middle == [[i, 0, 0] for i in range(0, 2 * FEWEST, 2) if i != 2]
    assert (images[:, :, 0, 0] * 255).round().int().unique().tolist() == [114]
    assert read_squares([files[2]], 32) is None


def test_targets_are_the_teachers_outputs_in_the_students_units_half_of_them_at_objects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconstruction, "POSITIONS", 64)
    torch.manual_seed(0)
    images = torch.rand(18, 3, 64, 64)  # two batches
    teacher, student = trained_like(model_of("yolo26n.yaml"), images), model_of("yolo26n-w1875.yaml", seed=1)
    _, pairs = start_from(student, teacher, [0, 1, 2], sliced=True)
    attention = student.model[10].m[0].attn
    theirs = teacher.model[10].m[0].attn
    queries = next(pair for pair in pairs if pair.student is attention.qkv)
    scale = math.sqrt(attention.key_dim / theirs.key_dim)
    assert scale > 1  # one head with more keys than each of the teacher's two
    rows = torch.ones(attention.num_heads, 2 * attention.key_dim + attention.head_dim)
    rows[:, : attention.key_dim] = scale
    assert torch.allclose(queries.factor, rows.flatten())

    place = torch.full((16, 1, 8, 8), 1e-9)
    place[:, :, 2, 3] = 1
    monkeypatch.setattr(reconstruction, "score_map", lambda raw: place[: len(raw["one2many"]["scores"])])
    fine = next(pair for pair in pairs if pair.student is student.model[3])  # of stride 8
    outputs: dict[Any, list[torch.Tensor]] = {queries.student: [], fine.student: []}
    for pair in (queries, fine):
        pair.teacher.bn.register_forward_hook(lambda m, x, out, kept=outputs[pair.student]: kept.append(out))
    teacher.model[-1].training = True
    with torch.no_grad():
        targets = reconstruction.targets_of(teacher, [queries, fine], images.split(16))
    for pair in (queries, fine):
        batch, image, row, column = targets[pair.student].places
        # each batch is shown twice, for its scores and for its outputs
        seen = torch.stack(
            [
                outputs[pair.student][2 * b][i, :, y, x]
                for b, i, y, x in zip(batch.tolist(), image.tolist(), row.tolist(), column.tolist(), strict=True)
            ]
        )
        held = pair.index >= 0
        expected = seen[:, pair.index[held]] * pair.factor[held]
        assert torch.allclose(targets[pair.student].values, expected, atol=1e-6)
    found = targets[fine.student]
    at_object = (found.places[2] == 2) & (found.places[3] == 3)
    assert at_object[~found.even].all()
    assert at_object[found.even].float().mean() < 0.1
