"""Which terms act between two models, what they read, and what they give."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from yolo_mkd import host
from yolo_mkd.distill.distiller import TERMS, Distiller
from yolo_mkd.distill.hooks import FeatureExtractor
from yolo_mkd.distill.matching import shared_classes
from yolo_mkd.distill.monitor import notes
from yolo_mkd.distill.resample import anchors_of
from yolo_mkd.distill.teachers import LiveTeacher, draw
from yolo_mkd.host.spec import ModelSpec
from yolo_mkd.knowledge import Knowledge, LossWeights, Outputs, Targets
from yolo_mkd.knowledge.soft_targets import box_loss, class_loss, class_mass
from yolo_mkd.settings import BadInput, defaults

TASK_TERMS = {"soft_mask", "soft_keypoint", "soft_obb"}
GAINS = {name: float(name in TASK_TERMS or defaults()[name]) for name in TERMS}
LABELS = Targets(torch.tensor([[0.5, 0.5, 0.4, 0.6]]), torch.tensor([0])), LossWeights()
NAMES = {0: "cat", 1: "dog", 2: "cow"}
LAYERS = {  # the last of each backbone stage, and the head's inputs
    "yolov8n": ((4, 6, 9), (15, 18, 21)),
    "yolov9t": ((4, 6, 9), (15, 18, 21)),
    "yolov10n": ((4, 6, 10), (16, 19, 22)),
    "yolo11n": ((4, 6, 10), (16, 19, 22)),
    "yolo12n": ((4, 6, 8), (14, 17, 20)),
    "yolo26n": ((4, 6, 10), (16, 19, 22)),
}


def model(name: str, names: dict[int, str] = NAMES) -> nn.Module:
    torch.manual_seed(0)
    built = host.build(f"{name}.yaml", classes=len(names))
    built.names = names
    return built


def distiller(student: nn.Module, teacher: nn.Module, imgsz: int = 64, **gains: float) -> Distiller:
    return Distiller(host.model_spec(student, imgsz), host.model_spec(teacher, imgsz), {**GAINS, **gains})


def teacher_outputs(teacher: nn.Module, matched: Distiller, images: torch.Tensor) -> Knowledge:
    return LiveTeacher("t", host.freeze(teacher), matched.match.teacher, matched.roles).infer(images)


def student_outputs(student: nn.Module, matched: Distiller, images: torch.Tensor) -> Knowledge:
    extractor = FeatureExtractor(student, matched.match.student, matched.roles)
    found = extractor.collect(student(images))
    extractor.hooks.remove()
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_found_by_role_in_every_family(name: str) -> None:
    spec = host.model_spec(model(name), 64)
    assert spec.strides == (8, 16, 32)
    found = (tuple(spec.layers[f"{place}_p{p}"].layer for p in (3, 4, 5)) for place in ("backbone", "neck"))
    assert tuple(found) == LAYERS[name]
    assert [(t.rows, t.columns) for t in spec.layers.values()] == [(8, 8), (4, 4), (2, 2)] * 2
    assert spec.branches == (("one2many", "one2one") if name in {"yolo26n", "yolov10n"} else ("one2many",))
    assert spec.reg_max == (1 if name == "yolo26n" else 16)


def test_an_image_size_between_strides_is_rounded_up_as_ultralytics_does() -> None:
    odd = host.model_spec(model("yolo26n"), 50)
    assert (odd.layers["neck_p3"].rows, odd.layers["neck_p5"].rows) == (8, 2)


def test_model_spec_changes_nothing_in_the_model() -> None:
    student = model("yolo26n").train()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    host.model_spec(student, 64)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert all(m.training for m in student.modules())
    assert not any(m._forward_hooks for m in student.modules())


ON = {name for name, gain in GAINS.items() if gain} - TASK_TERMS
PAIRS = [
    ("yolo26n", "yolo26s", ON - {"soft_dfl"}),
    ("yolo11n", "yolo11s", ON),
    ("yolov8n", "yolo11n", ON),
    ("yolov9t", "yolov9s", ON),
    ("yolo26n", "yolo11n", ON - {"soft_dfl"}),
    ("yolo12n", "yolo26n", ON - {"soft_dfl"}),
    ("yolov10n", "yolov8n", ON),
]


@pytest.mark.parametrize(("student", "teacher", "acting"), PAIRS)
def test_terms_that_act_give_gradients_and_a_value(student: str, teacher: str, acting: set[str]) -> None:
    s, t = model(student).train(), model(teacher)
    matched = distiller(s, t)
    assert {term.name for term in matched.acting} == acting
    images = torch.rand(2, 3, 64, 64)
    losses = matched.losses(student_outputs(s, matched, images), teacher_outputs(t, matched, images), *LABELS)
    for name, loss in losses.items():
        s.zero_grad()
        loss.backward(retain_graph=True)
        moved = [p for p in s.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
        assert loss.isfinite(), name
        assert moved, name
    assert all(p.grad is None for p in t.parameters())


def test_each_branch_has_class_weights_of_its_own_and_they_follow_the_names() -> None:
    s, t = model("yolo26n").train(), model("yolo26n", {0: "cow", 1: "cat"})
    matched = distiller(s, t)
    images = torch.rand(2, 3, 64, 64)
    ks, kt = student_outputs(s, matched, images), teacher_outputs(t, matched, images)
    classes = {"one2many": torch.tensor([0.2, 3.0]), "one2one": torch.tensor([5.0, 0.5])}  # of cat and cow
    found = matched.losses(ks, kt, LABELS[0], LossWeights(classes=classes))["soft"]
    expected = [
        class_loss(ks.branches[b].logits[:, [0, 2]], o.logits[:, [1, 0]], classes[b]) for b, o in kt.branches.items()
    ]
    assert found.item() == pytest.approx(sum(e.item() for e in expected), rel=1e-5)
    for o in kt.branches.values():
        o.logits[:, 0] += 8  # a teacher that detects cows, its first class and the second shared one
    masses = matched.class_masses(kt)
    assert set(masses) == {"one2many", "one2one"}
    assert all(m[0] == 0 and m[1] == class_mass(kt.branches[b].logits)[0] > 1 for b, m in masses.items())
    assert distiller(s, t, soft=0, soft_box=0).class_masses(kt) == {}
    ours = [s for s, _ in matched.match.classes]
    labels = torch.tensor(
        [[ours[1]], [ours[1]], [max(ours) + 1]]
    ).float()  # the last is of a class that only the student has
    assert matched.label_counts(labels).tolist() == [2 * (c == ours[1]) for c in ours]


def test_one2one_soft_targets_alone_do_not_reach_the_trunk() -> None:
    s, t = model("yolo26n").train(), model("yolo26n")
    images = torch.rand(2, 3, 64, 64)
    kt = teacher_outputs(t, distiller(s, t), images)

    def trunk_gradient(branches: tuple[str, ...]) -> float:
        matched = Distiller(replace(host.model_spec(s, 64), branches=branches), host.model_spec(t, 64), GAINS)
        s.zero_grad()
        matched.losses(student_outputs(s, matched, images), kt, *LABELS)["soft"].backward()
        grads = [p.grad for n, p in s.named_parameters() if not n.startswith("model.23.") and p.grad is not None]
        return float(sum(g.abs().sum() for g in grads))

    assert trunk_gradient(("one2one",)) == 0
    assert trunk_gradient(("one2many",)) > 0


def test_between_a_model_and_itself_every_loss_is_0() -> None:
    s = model("yolo11n")
    matched = distiller(s, s, guidance=0, exploration=0)
    images = torch.rand(2, 3, 64, 64)
    k = student_outputs(s, matched, images)
    for name, loss in matched.losses(k, k, *LABELS).items():
        assert loss.item() == pytest.approx(0, abs=1e-5), name


def test_class_names_in_another_order_change_nothing() -> None:
    s, t = model("yolo11n"), model("yolo11s")
    images = torch.rand(1, 3, 64, 64)
    straight = distiller(s, t, exploration=0, guidance=0)
    ks = student_outputs(s, straight, images)
    kt = teacher_outputs(t, straight, images)
    order = [2, 0, 1]
    t.names = {i: NAMES[j] for i, j in enumerate(order)}
    t.names[0] = f" {t.names[0].upper()} "
    turned = distiller(s, t, exploration=0, guidance=0)
    out = kt.branches["one2many"]
    shuffled = Knowledge({"one2many": Outputs(out.logits[:, order], out.distances, out.bins)}, kt.features, kt.levels)
    expected = straight.losses(ks, kt, *LABELS)
    for name, loss in turned.losses(ks, shuffled, *LABELS).items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-5), name


def test_without_a_shared_class_the_soft_targets_are_off_by_name() -> None:
    matched = distiller(model("yolo11n"), model("yolo11n", {0: "ship", 1: "car"}))
    assert {t.name for t in matched.acting} == {"attention", "relation", "guidance", "exploration"}
    assert matched.term("soft").why_not == "the teacher has none of this data's classes"


def test_only_equal_strides_are_matched() -> None:
    s, t = model("yolo26n"), model("yolo26n-p2")
    matched = distiller(s, t)
    assert matched.match.strides == (8, 16, 32)
    images = torch.rand(1, 3, 64, 64)
    losses = matched.losses(student_outputs(s, matched, images), teacher_outputs(t, matched, images), *LABELS)
    assert all(v.isfinite() for v in losses.values())
    assert set(losses) == ON - {"soft_dfl"}


def test_exploring_channels_get_no_gradient_from_the_other_terms_and_the_reverse() -> None:
    s, t = model("yolo26n"), model("yolo26s")
    matched = distiller(s, t)
    images = torch.rand(2, 3, 64, 64)
    ks = student_outputs(s, matched, images)
    kt = teacher_outputs(t, matched, images)
    role = "neck_p4"
    f = ks.features[role] = ks.features[role].detach().requires_grad_()
    half = f.shape[1] // 2
    for name, loss in matched.losses(ks, kt, *LABELS).items():
        if name not in {"attention", "relation", "guidance", "exploration"}:
            continue
        g = torch.autograd.grad(loss, f, retain_graph=True)[0]
        inherits, explores = g[:, :half].abs().sum().item(), g[:, half:].abs().sum().item()
        assert (inherits == 0) == (name == "exploration"), name
        assert (explores == 0) == (name != "exploration"), name


def test_anchors_are_taken_level_by_level() -> None:
    levels = {4: (2, 2), 8: (1, 2), 16: (1, 1)}
    x = torch.arange(7.0).view(1, 1, 7)
    assert anchors_of(x, levels, [8, 16]).flatten().tolist() == [4, 5, 6]
    assert anchors_of(x, levels, [4, 8, 16]) is x


def test_no_class_in_common_gives_no_pairs() -> None:
    assert shared_classes({0: "a"}, {}) == []
    assert shared_classes({0: "a", 1: "b"}, {0: "B ", 5: "A"}) == [(0, 5), (1, 0)]


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        (["Car", "Bus", "car"], ["Car", "Bus", "car"], [(0, 0), (1, 1), (2, 2)]),  # exact names first
        (["car", "Car"], ["Car", "car"], [(0, 1), (1, 0)]),
        (["Car", "bus"], ["car", "CAR", "Bus "], [(1, 2)]),  # two candidates for Car
        (["Car", "CAR", "bus"], ["car", "bus"], [(2, 1)]),  # two candidates for the teacher's car
        (["car", "CAR"], ["car", "Car"], [(0, 0), (1, 1)]),  # once the exact ones are paired, one is left on each side
        (["a", "a", "b"], ["a", "a", "b"], [(0, 0), (1, 1), (2, 2)]),  # of the same data
        (["a", "a", "b"], ["B", "c"], [(2, 0)]),  # duplicates that the teacher lacks
    ],
)
def test_classes_are_paired_one_to_one(student: list[str], teacher: list[str], pairs: list[tuple[int, int]]) -> None:
    assert shared_classes(dict(enumerate(student)), dict(enumerate(teacher))) == pairs


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (["a", "b", "a"], ["a"], r"the data has 2 classes named 'a' \(0, 2\), .* told apart: give each class a name"),
        (["a", "a"], ["A"], r"the data has 2 classes named 'a' \(0, 1\)"),
        (["a"], ["b", "a", "a"], r"the teacher has 2 classes named 'a' \(1, 2\)"),
    ],
)
def test_classes_of_equal_name_on_one_side_are_refused(student: list[str], teacher: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        shared_classes(dict(enumerate(student)), dict(enumerate(teacher)))


def test_the_soft_target_of_merged_classes_is_the_teachers_best_score_over_the_datas_classes() -> None:
    s, t = model("yolo26n", {0: "item"}).train(), model("yolo26s", {0: "dog", 1: "bird", 2: "cat"})
    spec = host.model_spec(s, 64).of_data(NAMES, 3, single_cls=True)
    assert (spec.names, spec.merged) == ({0: "item"}, NAMES)
    matched = Distiller(spec, host.model_spec(t, 64), GAINS)
    assert matched.match.classes == ((0, (2, 0)),)  # cat and dog; the data have no bird, the teacher no cow
    images = torch.rand(2, 3, 64, 64)
    ks, kt = student_outputs(s, matched, images), teacher_outputs(t, matched, images)
    best = {b: torch.maximum(kt.branches[b].logits[:, 0], kt.branches[b].logits[:, 2])[:, None] for b in kt.branches}
    wanted = sum(class_loss(ks.branches[b].logits, best[b]) for b in matched.match.branches)
    assert matched.losses(ks, kt, *LABELS)["soft"].item() == pytest.approx(wanted.item(), rel=1e-6)
    masses = matched.class_masses(kt)
    assert all(torch.equal(masses[b], class_mass(best[b])) for b in matched.match.branches)
    assert matched.label_counts(torch.zeros(5, 1)).tolist() == [5]
    text = "single_cls=True merges the data's classes: the soft target of the one class is the best score of the "
    assert f"{text}teacher's cat, dog" in notes(matched)


def test_a_teacher_of_one_merged_class_is_matched_with_the_merged_class() -> None:
    s, t = model("yolo26n", {0: "item"}), model("yolo26s", {0: "item"})
    spec = host.model_spec(s, 64).of_data(NAMES, 3, single_cls=True, classes=[1, 2])
    assert spec.merged == {1: "dog", 2: "cow"}
    assert Distiller(spec, host.model_spec(t, 64), GAINS).match.classes == ((0, (0,)),)


def test_raw_outputs_decode_to_ultralytics_own_boxes() -> None:
    for name in ("yolo11n", "yolo26n"):
        m = model(name)
        images = torch.rand(1, 3, 64, 64)
        decoded, raw = m(images)  # xywh in pixels
        out, levels = host.outputs(raw, (8, 16, 32), host.head(m).reg_max)
        strides = torch.cat([torch.full((h * w,), float(s)) for s, (h, w) in levels.items()])
        left, top, right, bottom = (out["one2many"].distances[0] * strides).unbind(0)
        assert torch.allclose(left + right, decoded[0, 2], atol=1e-3)
        assert torch.allclose(top + bottom, decoded[0, 3], atol=1e-3)
        assert torch.allclose(out["one2many"].logits.sigmoid(), decoded[:, 4:], atol=1e-6)


@pytest.mark.parametrize("name", ["yolov8n", "yolov10n", "yolo26n", "yolo26n-seg"])
def test_a_frozen_teacher_has_the_models_outputs_in_both_branches_with_its_layers_fused(name: str) -> None:
    t = model(name).eval()
    for module in t.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics of their own, which fusing has to take along
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    matched, images = distiller(t, t), torch.rand(2, 3, 64, 64)
    plain, _ = host.outputs(t(images), matched.match.teacher.strides, matched.match.teacher.reg_max)
    frozen = teacher_outputs(t, matched, images)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in t.model[0].modules())
    assert set(frozen.branches) == set(matched.match.teacher.branches) == set(plain)
    for branch, outputs in frozen.branches.items():
        assert torch.allclose(outputs.logits, plain[branch].logits, atol=2e-4), branch
        assert torch.allclose(outputs.distances, plain[branch].distances, atol=2e-4), branch
    assert isinstance(t(images), dict)  # nothing was decoded or sorted
    assert not frozen.branches["one2many"].logits.requires_grad


def test_a_frozen_teacher_keeps_its_statistics() -> None:
    t = host.freeze(model("yolo26n"))
    before = {k: v.clone() for k, v in t.state_dict().items()}
    t(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(v, before[k]) for k, v in t.state_dict().items())


def test_prefetched_outputs_are_used_once_and_only_for_their_own_batch() -> None:
    t = model("yolo26n")
    matched, passes = distiller(t, t), []
    teacher = LiveTeacher("t", host.freeze(t), matched.match.teacher, matched.roles)
    teacher.model.register_forward_hook(lambda *_: passes.append(1))
    batch, other = ({"img": torch.rand(1, 3, 64, 64)} for _ in range(2))
    expected = teacher(batch)
    teacher.prefetch(batch)
    ahead = teacher(batch)
    assert len(passes) == 2
    assert torch.equal(ahead.branches["one2one"].logits, expected.branches["one2one"].logits)
    assert all(torch.equal(ahead.features[r], f) for r, f in expected.features.items())
    teacher.prefetch(batch)
    assert not torch.equal(teacher(other).features["neck_p3"], expected.features["neck_p3"])
    assert len(passes) == 4  # the prefetched outputs were of another batch


@pytest.mark.parametrize("name", ["yolov8n", "yolov10n", "yolo12n", "yolo26n"])
def test_a_teacher_in_half_precision_takes_the_students_images_and_gives_about_the_same_outputs(name: str) -> None:
    t = model(name)
    matched, images = distiller(t, t), torch.rand(2, 3, 64, 64)
    full = teacher_outputs(t, matched, images)
    half = LiveTeacher("t", t.to(torch.bfloat16), matched.match.teacher, matched.roles).infer(images)
    assert half.features["neck_p3"].dtype == torch.bfloat16
    assert half.branches["one2many"].logits.dtype == torch.float32
    for role, f in full.features.items():  # three significant digits in bfloat16
        assert torch.allclose(half.features[role].float(), f, atol=0.03 * f.abs().max().item()), role


def test_hooks_hold_nothing_once_taken_and_collect_nothing_while_closed() -> None:
    m = model("yolo11n")
    extractor = FeatureExtractor(m, host.model_spec(m, 64), ["neck_p3"])
    m(torch.rand(1, 3, 64, 64))
    assert set(extractor.hooks.take()) == {"neck_p3"}
    assert extractor.hooks.take() == {}
    extractor.hooks.open = False
    m(torch.rand(1, 3, 64, 64))
    assert extractor.hooks.take() == {}


def test_every_teacher_is_drawn_as_often_and_alike_on_every_rank() -> None:
    drawn = [draw(seed=3, step=i, count=3) for i in range(10_000)]
    assert drawn == [draw(seed=3, step=i, count=3) for i in range(10_000)]
    for k in range(3):
        assert abs(drawn.count(k) - 10_000 / 3) < 3 * (10_000 * 2 / 9) ** 0.5


def test_maps_too_small_to_hold_a_pattern_are_left_out() -> None:
    s = host.model_spec(model("yolo26n"), 32)
    assert (s.layers["neck_p5"].rows, s.layers["neck_p5"].columns) == (1, 1)
    matched = Distiller(s, s, GAINS)
    assert matched.match.shared == ("backbone_p3", "backbone_p4", "neck_p3", "neck_p4")
    bare = ModelSpec(s.names, s.strides, s.branches, s.reg_max, s.rotated, {}, s.channels, s.parameters)
    assert {t.name for t in Distiller(bare, s, GAINS).acting} == {"soft", "soft_box"}


def test_guidance_through_the_teacher_s_head_is_0_for_its_own_features_and_moves_the_student_only() -> None:
    """A student that equals the teacher: its adapter is fitted to the identity."""
    s, t = model("yolo26n"), model("yolo26n")
    for scores in host.head(t).cv3:
        scores[-1].weight.data.normal_()
        scores[-1].bias.data.zero_()
    matched = Distiller(host.model_spec(s, 64), host.model_spec(t, 64), {"head_guidance": 1.0})
    teacher = LiveTeacher("t", host.freeze(t), matched.match.teacher, matched.roles, through_head=True)
    assert teacher.head is not None
    kt = teacher.infer(torch.rand(4, 3, 64, 64))
    kt.features = {r: torch.randn_like(f) for r, f in kt.features.items()}
    kt.branches = {"one2many": teacher.head(list(kt.features.values()))}
    features = {r: f.clone().requires_grad_() for r, f in kt.features.items()}
    ks = Knowledge(kt.branches, features, kt.levels)
    far = matched.losses(ks, kt, *LABELS)["head_guidance"].item()
    matched.losses(ks, kt, *LABELS, steer=False)
    near = matched.losses(ks, kt, *LABELS)["head_guidance"]
    near.backward()
    assert 0 <= near.item() < 0.05 * far
    assert all(f.grad is not None and f.grad.isfinite().all() for f in features.values())
    assert all(p.grad is None for p in t.parameters())


@pytest.mark.parametrize(
    ("change", "why"),
    [({"origin": "boxes", "averaged": True}, "features of several"), ({"strides": (8, 16, 32, 64)}, "levels that")],
)
def test_guidance_through_a_head_needs_one_detector_with_the_student_s_levels(change: dict, why: str) -> None:
    of_student = host.model_spec(model("yolo26n"), 64)
    matched = Distiller(of_student, replace(of_student, **change), {"head_guidance": 1.0})
    assert why in matched.term("head_guidance").why_not


def test_raw_outputs_of_every_task_decode_to_ultralytics_own_keypoints_and_oriented_boxes() -> None:
    for name in ("yolo11n-pose", "yolo26n-pose", "yolo11n-obb", "yolo26n-obb"):
        m = model(name)
        decoded, raw = m(torch.rand(1, 3, 64, 64))
        spec = host.model_spec(m, 64)
        out, levels = host.outputs(raw, spec.strides, spec.reg_max, spec.keypoints)
        o = out["one2many"]
        stride = torch.cat([torch.full((h * w,), float(s)) for s, (h, w) in levels.items()])
        x = torch.cat([(torch.arange(w) + 0.5).repeat(h) for h, w in levels.values()])
        if spec.keypoints is not None:
            assert torch.allclose((x + o.keypoints[0, :, 0]) * stride, decoded[0, 7::3], atol=1e-3)
            assert torch.allclose(o.keypoints[0, :, 2].sigmoid(), decoded[0, 9::3], atol=1e-6)
        else:
            left, top, right, bottom = o.distances[0]
            across, down = (right - left) / 2, (bottom - top) / 2
            centre = x + across * o.angles[0].cos() - down * o.angles[0].sin()
            assert torch.allclose(centre * stride, decoded[0, 0], atol=1e-3)
            assert torch.allclose((left + right) * stride, decoded[0, 2], atol=1e-3)


ONLY_ONE = [
    ("yolo26n-seg", "yolo26n", "soft_mask", "the teacher has no masks"),
    ("yolo26n", "yolo26n-obb", "soft_obb", "the student has no oriented boxes"),
    ("yolo26n-pose", "yolo11n-pose", "soft_keypoint", "the student has 17 keypoints, the teacher 5"),
    ("yolo26n", "yolo26n", "soft_keypoint", "neither head has keypoints"),
]


@pytest.mark.parametrize(("student", "teacher", "term", "why"), ONLY_ONE)
def test_a_term_of_one_task_names_what_the_other_head_lacks(student: str, teacher: str, term: str, why: str) -> None:
    s, t = model(student), model(teacher)
    theirs = host.model_spec(t, 64)
    if "5" in why:
        theirs = replace(theirs, keypoints=replace(theirs.keypoints, count=5))
    assert Distiller(host.model_spec(s, 64), theirs, GAINS).term(term).why_not == why


def test_a_teacher_cache_refuses_the_terms_of_these_tasks_by_name() -> None:
    m = model("yolo26n-seg")
    with pytest.raises(BadInput, match="attention maps, and soft_mask need more of the teacher: switch them off"):
        distiller(m, m, guidance=0, exploration=0).require_cacheable()


@pytest.mark.parametrize("name", ["yolo26n-seg", "yolo26n-pose", "yolo26n-obb"])
def test_a_student_equal_to_its_teacher_has_no_loss_in_its_tasks_term(name: str) -> None:
    s, t = model(name).eval(), model(name)
    matched = distiller(s, t, guidance=0, exploration=0)
    images = torch.rand(2, 3, 64, 64)
    losses = matched.losses(student_outputs(s, matched, images), teacher_outputs(t, matched, images), *LABELS)
    (term,) = TASK_TERMS & set(losses)
    assert losses[term].item() == pytest.approx(0, abs=1e-4)


def test_guidance_through_a_head_compares_its_scores_and_boxes_with_the_teacher_s() -> None:
    """Whatever the features are, this head gives logits 0 and box sides of 1."""
    s, t = model("yolo26n"), model("yolo26n")
    matched = Distiller(host.model_spec(s, 64), host.model_spec(t, 64), {"head_guidance": 1.0})
    kt = teacher_outputs(t, matched, torch.rand(2, 3, 64, 64))
    own = kt.branches["one2many"]
    target = Outputs(torch.randn_like(own.logits), 3 * torch.rand_like(own.distances))
    kt.branches = {"one2many": target}
    fixed = Outputs(torch.zeros_like(target.logits), torch.ones_like(target.distances))
    kt.head = lambda neck: fixed
    ks = Knowledge({}, {r: f.clone().requires_grad_() for r, f in kt.features.items()}, kt.levels)
    found = matched.losses(ks, kt, *LABELS)["head_guidance"].item()
    expected = class_loss(fixed.logits, target.logits) + box_loss(fixed.distances, target.distances, target.logits)
    assert found == pytest.approx(expected.item(), rel=1e-5)
