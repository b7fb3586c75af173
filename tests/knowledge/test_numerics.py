"""Every term on what real training and half precision produce: flat, empty, huge and tiny maps, bf16 and fp16."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from yolo_mkd.knowledge.attention import attention_loss, attention_map
from yolo_mkd.knowledge.class_attention import class_attention_loss
from yolo_mkd.knowledge.correlation import pearson_loss
from yolo_mkd.knowledge.exploration import exploration_loss
from yolo_mkd.knowledge.guidance import Guide
from yolo_mkd.knowledge.object_relation import object_gram, object_masks, object_relation_loss
from yolo_mkd.knowledge.relation import grid_for, relation_loss, relation_matrix
from yolo_mkd.knowledge.soft_targets import box_loss, class_loss, dfl_loss


def relation(fs: Tensor, ft: Tensor) -> Tensor:
    halves = [[f, f.flip(1)[:, ::2, ::2].contiguous().repeat_interleave(2, 2)] for f in (fs, ft)]
    grid = grid_for([(f.shape[2], f.shape[3]) for f in halves[0]])
    return relation_loss(relation_matrix(halves[0], grid), relation_matrix(halves[1], grid))


def guidance(fs: Tensor, ft: Tensor) -> Tensor:
    torch.manual_seed(1)
    return Guide(fs.shape[1], ft.shape[1])(fs, ft)


def object_weighted(fs: Tensor, ft: Tensor) -> Tensor:
    weight = torch.full((len(fs), 1, *fs.shape[2:]), 0.02)
    weight[:, :, 2:5, 3:6] = 1
    return pearson_loss(fs.float(), ft.float(), weight)


def by_class(fs: Tensor, ft: Tensor) -> Tensor:
    scores = torch.zeros(len(fs), 2, *fs.shape[2:])
    scores[:, 0, 2:5, 3:6] = scores[:, 1, :2, :3] = 0.9
    return class_attention_loss(attention_map(fs), attention_map(ft), scores)


def between_objects(fs: Tensor, ft: Tensor) -> Tensor:
    boxes = torch.tensor([[0.3, 0.3, 0.4, 0.4], [0.7, 0.6, 0.3, 0.3], [0.5, 0.5, 0.9, 0.9], [0.2, 0.8, 0.1, 0.1]])
    masks, image = object_masks(boxes, *fs.shape[2:]), torch.arange(4)
    return object_relation_loss(*([object_gram(f.float(), masks, image)] for f in (fs, ft)))


FEATURE_TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "attention": attention_loss,
    "relation": relation,
    "guidance": guidance,
    "exploration": exploration_loss,
    "object_guidance": object_weighted,
    "class_attention": by_class,
    "object_relation": between_objects,
}
OUTPUT_TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "soft": class_loss,
    "soft_box": lambda zs, zt: box_loss(zs[:, :4], zt[:, :4], zt),
    "soft_dfl": lambda zs, zt: dfl_loss(zs.unflatten(1, (4, 2)), zt.unflatten(1, (4, 2)), zt),
}
MAPS = {
    "zero": lambda f: f * 0,
    "constant": lambda f: f * 0 + 3,
    "huge": lambda f: f * 1e4,
    "tiny": lambda f: f * 1e-6,
    "nearly constant": lambda f: 3 + f * 1e-5,
    "one cell": lambda f: f * (torch.arange(f[0, 0].numel()).view(f.shape[2:]) == 5),
}


@pytest.fixture
def features() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(4, 8, 8, 8), torch.randn(4, 8, 8, 8)


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("name", FEATURE_TERMS)
def test_any_map_gives_a_finite_loss_and_a_bounded_gradient(
    name: str, kind: str, features: tuple[Tensor, Tensor]
) -> None:
    """Normalised without a floor, a flat map's gradient reaches 1e12 and a tiny one's grows as it shrinks."""
    for student, teacher in ((kind, None), (None, kind), (kind, kind)):
        fs = MAPS[student](features[0]) if student else features[0]
        ft = MAPS[teacher](features[1]) if teacher else features[1]
        fs = fs.requires_grad_()
        loss = FEATURE_TERMS[name](fs, ft)
        (gradient,) = torch.autograd.grad(loss, fs)
        assert loss.isfinite()
        assert 0 <= loss.item() <= 4
        assert gradient.isfinite().all()
        assert gradient.norm() < 50, (student, teacher)


@pytest.mark.parametrize("kind", ["zero", "constant", "huge", "tiny"])
@pytest.mark.parametrize("name", OUTPUT_TERMS)
def test_any_head_output_gives_a_finite_loss_and_gradient(name: str, kind: str) -> None:
    torch.manual_seed(0)
    zs, zt = (MAPS[kind](torch.randn(2, 8, 21, 1)).squeeze(-1) for _ in range(2))
    zs = zs.requires_grad_()
    loss = OUTPUT_TERMS[name](zs, zt)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, zs)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 300.0, 1e-3])
@pytest.mark.parametrize("name", FEATURE_TERMS)
def test_half_precision_features_are_compared_in_full_precision(
    name: str, size: float, dtype: torch.dtype, features: tuple[Tensor, Tensor]
) -> None:
    """At 300 a square leaves fp16's range, at 1e-3 it vanishes; rounding the features themselves costs under 1 %."""
    fs, ft = ((size * f) for f in features)
    expected = FEATURE_TERMS[name](fs, ft).item()
    found = FEATURE_TERMS[name](fs.to(dtype), ft.to(dtype)).item()
    assert found == pytest.approx(expected, rel=0.01, abs=2e-4)


@pytest.mark.parametrize("name", FEATURE_TERMS)
def test_terms_inside_autocast_are_what_they_are_outside(name: str, features: tuple[Tensor, Tensor]) -> None:
    """As the criterion calls them: autocast would else run the matrix products in half precision."""
    fs, ft = (f.bfloat16() for f in features)
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        found = FEATURE_TERMS[name](fs, ft)
    assert found.dtype == torch.float32
    assert found.item() == FEATURE_TERMS[name](fs.float(), ft.float()).item()
