"""Losses against a cached teacher are those against the live one, within the stated errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from yolo_mkd.cache.codec import Layout, decode, encode
from yolo_mkd.knowledge import Knowledge, Outputs
from yolo_mkd.knowledge.attention import attention_map, normalise
from yolo_mkd.knowledge.relation import grid_for, relation_loss, relation_matrix
from yolo_mkd.knowledge.soft_targets import box_loss, class_loss
from yolo_mkd.settings import BadInput

LEVELS = {8: (32, 32), 16: (16, 16), 32: (8, 8)}
ROLES = {"backbone_p3": (32, 32), "neck_p3": (32, 32), "neck_p4": (16, 16), "neck_p5": (8, 8)}
EVERYTHING = 10**6


def layout(classes: int = 20, levels: dict[int, tuple[int, int]] = LEVELS, **others: int) -> Layout:
    return Layout(classes, levels, ("one2many", "one2one"), ROLES, **others)


def pair(of: Layout, images: int, seed: int = 0) -> tuple[Knowledge, Knowledge]:
    """A student that is on its way to its teacher: a few high-scoring objects on a background of logits -6 to -12."""
    g = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    branches = []
    for _ in of.branches:
        z = -6 - 6 * torch.rand(images, of.classes, of.anchors, generator=g)
        for i in range(images):  # eight objects, each on up to five neighbouring anchors
            for a in torch.randint(of.anchors, (8,), generator=g).tolist():
                c = int(torch.randint(of.classes, (1,), generator=g))
                near = slice(a, a + 5)
                z[i, c, near] = (3 - torch.arange(5.0) + noise(5))[: z[i, c, near].numel()]
        d = torch.rand(images, 4, of.anchors, generator=g) * 6 + 0.5
        live = Outputs(z, d)
        branches.append((Outputs(z + noise(*z.shape), d * (0.3 * noise(*d.shape)).exp()), live))
    ft = {r: noise(images, 16, *size).square() * (noise(images, 1, *size)).exp() for r, size in of.roles.items()}
    fs = {r: f[:, :8] + noise(images, 8, *f.shape[2:]) for r, f in ft.items()}
    s = Knowledge({b: o for b, (o, _) in zip(of.branches, branches, strict=True)}, fs, of.levels)
    t = Knowledge({b: o for b, (_, o) in zip(of.branches, branches, strict=True)}, ft, of.levels)
    return s, t


def map_loss(es: Tensor, et: Tensor) -> Tensor:
    return 0.5 * (normalise(es.flatten(1)) - normalise(et.flatten(1))).square().sum(1).mean()


def one(outputs: Outputs, i: int) -> Outputs:
    return Outputs(outputs.logits[i : i + 1], outputs.distances[i : i + 1])


def errors(of: Layout, s: Knowledge, t: Knowledge, cached: Knowledge) -> dict[str, list[float]]:
    """By how much of itself each image's loss changes, by term."""
    found: dict[str, list[float]] = {"class": [], "box": [], "attention": [], "relation": []}
    assert cached.relations is not None and cached.relations[0] == tuple(of.roles)
    grid = grid_for(list(of.roles.values()))
    rs, rt = (relation_matrix(list(k.features.values()), grid) for k in (s, t))
    for i in range(len(rs)):
        for branch in of.branches:
            student, live, kept = (one(k.branches[branch], i) for k in (s, t, cached))
            losses = [class_loss(student.logits, o.logits) for o in (live, kept)]
            found["class"].append(float((losses[1] / losses[0] - 1).abs()))
            losses = [box_loss(student.distances, o.distances, o.logits) for o in (live, kept)]
            found["box"].append(float((losses[1] / losses[0] - 1).abs()))
        maps = [
            (*(attention_map(k.features[r][i : i + 1]) for k in (s, t)), cached.maps[r][i : i + 1]) for r in of.roles
        ]
        losses = [sum(map_loss(es, m[which]) for es, *m in maps) for which in (0, 1)]  # the term is a mean over layers
        found["attention"].append(float((losses[1] / losses[0] - 1).abs()))
        losses = [relation_loss(rs[i : i + 1], r[i : i + 1]) for r in (rt, cached.relations[1])]
        found["relation"].append(float((losses[1] / losses[0] - 1).abs()))
    return found


@pytest.mark.parametrize("classes", [1, 20])
def test_every_loss_of_a_cached_image_is_within_one_percent(classes: int) -> None:
    of = layout(classes)
    s, t = pair(of, images=100)
    found = errors(of, s, t, decode(of, encode(of, range(100), t), "cpu"))
    assert {term: len(e) for term, e in found.items()} == {
        "class": 200, "box": 200, "attention": 100, "relation": 100
    }  # fmt: skip
    assert {term: max(e) for term, e in found.items() if max(e) > 0.01} == {}


def test_with_everything_kept_scores_and_boxes_are_within_a_thousandth() -> None:
    of = layout(3, top=EVERYTHING, best=EVERYTHING)
    s, t = pair(of, images=100)
    found = errors(of, s, t, decode(of, encode(of, range(100), t), "cpu"))
    assert max(found["class"]) < 1e-3
    assert max(found["box"]) < 1e-3


@pytest.mark.parametrize("classes", [1, 2, 20, 300])
def test_the_sum_of_all_scores_is_kept(classes: int) -> None:
    of = layout(classes)
    _, t = pair(of, images=2)
    live, kept = t.branches["one2many"].logits, decode(of, encode(of, [1, 2], t), "cpu").branches["one2many"].logits
    assert kept.shape == live.shape
    torch.testing.assert_close(kept.sigmoid().sum((1, 2)), live.sigmoid().sum((1, 2)), rtol=3e-3, atol=0)
    torch.testing.assert_close(kept.amax(1).sigmoid().sum(1), live.amax(1).sigmoid().sum(1), rtol=3e-3, atol=0)


def test_classes_that_are_not_kept_share_exactly_the_rest() -> None:
    of = Layout(4, {8: (1, 2)}, ("one2many",), {}, top=2)
    q = torch.tensor([[[0.9, 0.5], [0.4, 0.1], [0.05, 0.02], [0.01, 0.03]]])  # 1 C A
    t = Knowledge({"one2many": Outputs(q.logit(), torch.ones(1, 4, 2))}, {}, of.levels)
    kept = decode(of, encode(of, [0], t), "cpu").branches["one2many"].logits.sigmoid()
    torch.testing.assert_close(kept[0, :2], q[0, :2], rtol=1e-3, atol=0)
    torch.testing.assert_close(kept[0, 2:], torch.tensor([[0.03, 0.025], [0.03, 0.025]]), rtol=1e-3, atol=0)


def test_the_best_class_of_an_anchor_stays_the_best() -> None:
    of = layout(20)
    _, t = pair(of, images=4)
    live, kept = t.branches["one2one"].logits, decode(of, encode(of, range(4), t), "cpu").branches["one2one"].logits
    assert torch.equal(live.argmax(1), kept.argmax(1))


def test_indices_are_anchors_and_scores_are_probabilities() -> None:
    of = layout(3)
    _, t = pair(of, images=4)
    t.branches["one2many"].logits[:, 0, :3] = torch.tensor([60.0, -90.0, 0.0])  # certain both ways
    entries = encode(of, range(4), t)
    for branch in of.branches:
        assert entries[branch]["index"].max() < of.anchors
        assert all(len(set(index)) == of.kept for index in entries[branch]["index"].tolist())
        assert entries[branch]["score"].min() >= 0 and entries[branch]["score"].max() <= 1
        assert entries[branch]["label"].max() < 3
    logits = decode(of, entries, "cpu").branches["one2many"].logits
    assert logits.isfinite().all()
    assert (logits[:, 0, 0].sigmoid() > 0.999).all()
    assert (logits[:, :, 1].sigmoid().amin(1) < 1e-3).all()


@pytest.mark.parametrize(("anchors", "index"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_the_last_of_many_anchors_is_found_again(anchors: int, index: type) -> None:
    of = Layout(1, {8: (1, anchors)}, ("one2many",), {}, top=2)
    z = torch.full((1, 1, anchors), -9.0)
    z[0, 0, -1] = 2.0
    d = torch.ones(1, 4, anchors)
    d[..., -1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    entries = encode(of, [5], Knowledge({"one2many": Outputs(z, d)}, {}, of.levels))
    kept = decode(of, entries, "cpu").branches["one2many"]
    assert entries["one2many"]["index"].dtype == index
    assert kept.logits[0, 0, -1] == pytest.approx(2.0, abs=0.01)
    assert kept.logits[0, 0, :-1].max() < -8.9
    assert kept.distances[0, :, -1].tolist() == [1, 2, 3, 4]


def test_fewer_anchors_than_would_be_kept_are_all_kept() -> None:
    of = Layout(3, {8: (2, 2), 16: (1, 1)}, ("one2many",), {})
    g = torch.Generator().manual_seed(0)
    z, d = torch.randn(2, 3, 5, generator=g), torch.rand(2, 4, 5, generator=g)
    kept = decode(of, encode(of, [1, 2], Knowledge({"one2many": Outputs(z, d)}, {}, of.levels)), "cpu")
    assert of.kept == 5
    torch.testing.assert_close(kept.branches["one2many"].distances, d, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(kept.branches["one2many"].logits.sigmoid(), z.sigmoid(), rtol=1e-3, atol=0)


def test_class_numbers_above_255_come_back() -> None:
    of = Layout(300, {8: (20, 20)}, ("one2many",), {})
    z = torch.full((1, 300, 400), -9.0)
    z[0, 299, 7], z[0, 256, 8], z[0, 280, 9:] = 1.0, 0.5, -5.0
    kept = decode(of, encode(of, [0], Knowledge({"one2many": Outputs(z, torch.ones(1, 4, 400))}, {}, of.levels)), "cpu")
    assert kept.branches["one2many"].logits.argmax(1)[0, 7:].tolist() == [299, 256] + [280] * 391


def test_inactive_layers_and_a_teacher_without_anchors_can_be_cached() -> None:
    of = Layout(3, {}, (), {"neck_p3": (8, 8), "neck_p4": (4, 4)})
    t = Knowledge({}, {"neck_p3": torch.zeros(2, 5, 8, 8), "neck_p4": torch.ones(2, 5, 4, 4)})
    kept = decode(of, encode(of, [1, 2], t), "cpu")
    assert kept.branches == {} and kept.features == {}
    assert not kept.maps["neck_p3"].any()
    assert kept.relations is not None and kept.relations[1].isfinite().all()


def test_relations_are_those_of_the_features() -> None:
    of = layout()
    _, t = pair(of, images=2)
    roles, matrix = decode(of, encode(of, [0, 1], t), "cpu").relations or ((), torch.empty(0))
    live = relation_matrix([t.features[r] for r in roles], grid_for([ROLES[r] for r in roles]))
    torch.testing.assert_close(matrix, live, rtol=1e-3, atol=1e-4)


def test_half_precision_outputs_can_be_cached() -> None:
    of = layout(3)
    _, t = pair(of, images=1)
    half = Knowledge(
        {b: Outputs(o.logits.half(), o.distances.half()) for b, o in t.branches.items()},
        {r: f.half() for r, f in t.features.items()},
        of.levels,
    )
    whole, halved = (decode(of, encode(of, [0], k), "cpu") for k in (t, half))
    peak = float(whole.maps["neck_p3"].amax())
    torch.testing.assert_close(halved.maps["neck_p3"], whole.maps["neck_p3"], rtol=0, atol=0.01 * peak)
    assert halved.branches["one2many"].logits.dtype == torch.float32


def test_a_batch_of_another_size_is_refused_in_one_line() -> None:
    of = layout(3)
    other = Layout(3, {8: (20, 20), 16: (10, 10), 32: (5, 5)}, of.branches, of.roles)
    _, t = pair(other, images=1)
    with pytest.raises(BadInput, match=r"^record= caches images of one size .*multi_scale=0[^\n]*$"):
        encode(of, [0], t)


def test_a_layout_comes_back_from_json_in_the_same_order() -> None:
    of = Layout(80, {32: (1, 2), 8: (4, 8)}, ("one2one",), {"neck_p5": (1, 2), "backbone_p3": (4, 8)}, top=7, best=3)
    again = Layout.of(json.loads(json.dumps(of.described(), sort_keys=True)))
    assert again == of
    assert again.dtype == of.dtype
    assert list(again.levels) == [32, 8]


def test_an_entry_at_640_pixels_has_the_documented_size() -> None:
    roles = {f"{part}_p{p}": (640 >> p, 640 >> p) for part in ("backbone", "neck") for p in (3, 4, 5)}
    of = Layout(80, {s: (640 // s, 640 // s) for s in (8, 16, 32)}, ("one2many",), roles)
    inner, outer = 300 * (2 + 2 * (1 + 2) + 4 * 2 + 2), 8400 * 6 + 4 + 2 * 4 + 4
    assert of.bytes == 8 + inner + outer + 2 * 8400 + 6 * 4 + 21 * 2
