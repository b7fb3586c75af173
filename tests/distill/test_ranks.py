"""Two ranks of a DDP run, each with half of a batch, against one process with the whole batch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from yolo_mkd.distill.balance import gradient_ratios
from yolo_mkd.distill.criterion import Criterion
from yolo_mkd.distill.distiller import TERMS, Distiller
from yolo_mkd.host.spec import LayerSpec, ModelSpec
from yolo_mkd.knowledge import Knowledge, LossWeights, Outputs, Targets

IMAGES, CLASSES, BINS = 4, 3, 4
LEVELS = {8: (8, 8), 16: (4, 4), 32: (2, 2)}
ANCHORS = sum(rows * columns for rows, columns in LEVELS.values())
ROLES = {f"{place}_p{p}": 2 ** (6 - p) for place in ("backbone", "neck") for p in (3, 4, 5)}
WIDTHS = {"student": 6, "teacher": 10}
OWN = {"channel_wise", "masked_generation", "head_guidance"}  # their statistics or masks are each rank's own
RIDGE = {"object_guidance", "head_guidance"}  # whose adapters are solved for
BOXES = torch.tensor([[0.3, 0.3, 0.4, 0.4], [0.7, 0.6, 0.3, 0.5], [0.5, 0.5, 0.8, 0.3], [0.6, 0.3, 0.3, 0.3]])
LABELS = torch.cat([BOXES, BOXES.flip(0), BOXES[:1]]), torch.tensor([0, 0, 0, 1, 1, 1, 1, 0, 2]), torch.arange(9) % 3


def spec(side: str) -> ModelSpec:
    layers = {role: LayerSpec(i, WIDTHS[side], n, n) for i, (role, n) in enumerate(ROLES.items())}
    names = dict(enumerate("abc"))
    return ModelSpec(names, tuple(LEVELS), ("one2many", "one2one"), BINS, False, layers, 3, 1000)


class Model(nn.Module):
    """Gives outputs for four images; its parameters reach all of them."""

    def __init__(self, side: str):
        super().__init__()
        torch.manual_seed(len(side) + WIDTHS[side])
        width = WIDTHS[side]
        self.mixes = nn.ParameterDict({r: torch.eye(width) + 0.2 * torch.randn(width, width) for r in ROLES})
        self.head = nn.Parameter(torch.eye(CLASSES) + 0.2 * torch.randn(CLASSES, CLASSES))
        self.sides = nn.Parameter(1 + 0.2 * torch.rand(4, BINS))
        self.raw = {r: torch.randn(IMAGES, width, n, n) + torch.randn(width, 1, 1) for r, n in ROLES.items()}
        self.logits = 2 * torch.randn(IMAGES, CLASSES, ANCHORS) - 3
        self.logits[2:] -= 2  # the second half has few objects
        self.bins = 2 * torch.randn(IMAGES, 4, BINS, ANCHORS)

    def forward(self, images: slice) -> Knowledge:
        features = {r: torch.einsum("bchw,cd->bdhw", x[images], self.mixes[r]) for r, x in self.raw.items()}
        bins = self.bins[images] * self.sides[..., None]
        sides = torch.einsum("bska,k->bsa", bins.softmax(2), torch.arange(BINS).float())
        logits = torch.einsum("bca,cd->bda", self.logits[images], self.head)
        branches = {b: Outputs(logits * k, sides, bins) for b, k in (("one2many", 1), ("one2one", 1.5))}
        return Knowledge(branches, features, LEVELS, head=through_head)


def through_head(neck: list[Tensor]) -> Outputs:
    """A frozen head: the first channels are class logits, the next ones box sides."""
    f = torch.cat([x.flatten(2) for x in neck], 2)
    return Outputs(f[:, :CLASSES] - 2, f[:, CLASSES : CLASSES + 4].exp())


def labels(images: slice, labelled: int | None) -> Targets:
    boxes, image, classes = LABELS
    own = (image >= images.start) & (image < images.stop)
    return Targets(boxes[own], image[own] - images.start, labelled, classes[own])


def step(images: slice, weights: Tensor | None, steer: bool) -> dict[str, Any]:
    """One batch's losses, gradients, gradient ratios, class weights and adapters."""
    student, teacher = Model("student"), Model("teacher").requires_grad_(False)
    torch.manual_seed(5)
    distiller = Distiller(spec("student"), spec("teacher"), dict.fromkeys(TERMS, 1.0), soft_pw=0.5)
    ks, kt, targets = student(images), teacher(images), labels(images, None)
    distiller.balancer.observe_classes(distiller.class_masses(kt), distiller.label_counts(targets.classes))
    loss_weights = LossWeights(None if weights is None else weights[images], None, distiller.balancer.class_weights())
    found = {n: v for n, v in distiller.losses(ks, kt, targets, loss_weights, steer).items() if n not in OWN}
    trained = [*student.parameters(), *distiller.adapters.parameters()]
    gradients = {}
    for name, loss in found.items():
        grads = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True) if loss.requires_grad else ()
        gradients[name] = torch.cat([g.flatten() if g is not None else torch.zeros(p.numel())
                                     for g, p in zip(grads, trained, strict=False)] or [torch.zeros(1)])  # fmt: skip
    task = sum(o.logits.sigmoid().sum() for o in ks.branches.values()) / len(kt.branches["one2many"].logits)
    return {
        "losses": {n: v.detach() for n, v in found.items()},
        "gradients": gradients,
        "ratios": gradient_ratios(task, found, list(student.parameters())),
        "classes": loss_weights.classes,
        "adapters": {n: p.detach() for n, p in distiller.adapters.named_parameters() if n.split(".")[0] in RIDGE},
    }


CASES = {
    "all labelled": (None, True),
    "unlabelled": (torch.tensor([1.0, 0.4, 0.7, 0.1]), True),
    "fitting": (None, False),
}


def one_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    images = slice(2 * rank, 2 * rank + 2)
    found = {name: step(images, *case) for name, case in CASES.items()}
    criterion = Criterion.__new__(Criterion)
    criterion.skipped, criterion.in_a_row = Counter(), Counter()
    values = {"a": torch.tensor(float("nan") if rank else 1.0), "b": torch.tensor(2.0)}
    torch.save({**found, "finite": list(criterion._finite(values))}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(one_rank, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_step_on_two_ranks_is_that_of_one_process_on_the_joined_batch(ranks: list[Any], case: str) -> None:
    joined, halves = step(slice(0, IMAGES), *CASES[case]), [rank[case] for rank in ranks]
    assert joined["losses"].keys() >= {"soft", "attention", "guidance", "exploration", "object_relation", "error_focus"}
    wrong = {}
    for name, expected in joined["losses"].items():
        mean = sum(half["losses"][name] for half in halves) / 2
        slope = sum(half["gradients"][name] for half in halves) / 2
        wanted = joined["gradients"][name]
        off = [(mean - expected).abs() / expected, (slope - wanted).norm() / wanted.norm().clamp(min=1e-9)]
        if off[0] > 1e-4 or off[1] > (
            1e-3 if case == "fitting" else 1e-4
        ):  # fitting solves for adapters, at a slope of 0
            wrong[name] = [f"{float(x):.1e}" for x in off]
    assert wrong == {}
    for half in halves:
        for name, ratio in joined["ratios"].items():
            assert half["ratios"][name].strength == pytest.approx(ratio.strength, rel=1e-4), name
            assert half["ratios"][name].cosine == pytest.approx(ratio.cosine, abs=1e-4), name
        torch.testing.assert_close(half["classes"], joined["classes"])
        torch.testing.assert_close(half["adapters"], joined["adapters"], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_term_that_is_nan_on_one_rank_is_left_out_on_all(ranks: list[Any]) -> None:
    assert [rank["finite"] for rank in ranks] == [["b"], ["b"]]
