"""Loss weights: gains measured once on the run's own gradients and then frozen, class weights, and the gate.

The value of a loss says little about its gradient: at its nominal gain the relation loss is 2 % of the detection loss
in value and 29 % in gradient. So users give shares of the detection loss's gradient. Normalising by values all along
would moreover let a term that is nearly learnt grow without end; measuring once does not. After the idea of GradNorm
(Chen et al., ICML 2018); the gate after Du et al. (arXiv 1812.02224).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn

from yolo_mkd.knowledge import ranks

MEASUREMENTS = 12  # before the gains are frozen
LIMITS = (0.05, 20.0)  # times the nominal gain: beyond, a measurement says more about a dead term than about its weight
EPS = 1e-7
SCALE = 1024.0  # keeps half-precision gradients of small losses from vanishing; a power of two, so nothing else changes


@dataclass(frozen=True)
class GradientRatio:
    """One term's gradient on one batch, compared with the detection loss's.

    Attributes:
        strength: its norm over the detection gradient's, without any gain.
        cosine: of the angle between the two; below 0 the term opposes the task.
    """

    strength: float
    cosine: float


def gradient_ratios(task: Tensor, losses: dict[str, Tensor], weights: list[nn.Parameter]) -> dict[str, GradientRatio]:
    """Compare the gradients of some losses with the task's. The graph stays usable.

    Args:
        task: the detection loss per image, a scalar.
        losses: each term's loss, a scalar.
        weights: the parameters that the gradients are taken by.

    Returns:
        The ratio by term, of the gradients' means over the ranks of a DDP run; not finite where a gradient is not.
    """

    def gradient(loss: Tensor) -> Tensor:
        found = torch.autograd.grad(SCALE * loss, weights, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]
        return ranks.average(torch.cat([p.flatten() for p in parts]).float())

    base = gradient(task)
    rows = []
    for loss in losses.values():
        g = gradient(loss) if loss.requires_grad else ranks.average(torch.zeros_like(base))
        rows.append(torch.stack([g.norm() / base.norm(), torch.cosine_similarity(g, base, dim=0)]))
    table = torch.stack(rows)
    return {name: GradientRatio(*values) for name, values in zip(losses, table.tolist(), strict=True)}


def class_weights(masses: Tensor, power: float) -> Tensor:
    """Weights of classes, mass^-power, scaled so that the weighted masses have the sum of the masses.

    Args:
        masses: the sum of the teacher's scores for each class, C. A class without any weighs 1; less than one sure
            anchor counts as one.
        power: 0 weighs anchors alike, 1 classes alike.
    """
    weights = masses.clamp(min=1) ** -power
    weights = weights * (masses.sum() / (weights * masses).sum().clamp(min=EPS))
    return torch.where(masses > 0, weights, 1.0)


@dataclass(frozen=True)
class TermWeight:
    """The loss weight that is asked for one term.

    Attributes:
        asked: its share of the detection gradient or, without calibration, its plain gain.
        gain: the plain gain where nothing is measured.
        share: the share that this gain usually gives.
    """

    asked: float
    gain: float
    share: float

    @property
    def nominal(self) -> float:
        """The gain that usually gives the share that is asked for."""
        return self.gain * self.asked / self.share


@dataclass
class GradientBalancer:
    """The gains of one teacher's terms through a run.

    Attributes:
        asked: the loss weight asked for each term.
        calibrate: measure the gains; else `asked` is the gain.
        gate: leave a term out while its gradient opposes the task's.
        gains: the factor of each term's loss now.
        frozen: whether the gains are final.
        history: strengths of each term until then.
        epoch: ratios of each term in this epoch, as shares at full weight.
        gated: terms that the gate leaves out now.
        power: of the class weights of soft targets.
        masses: the sum of the teacher's scores for each class until the gains were final, C by branch.
        labels: how many labels each class had until then, C.
    """

    asked: dict[str, TermWeight]
    calibrate: bool = True
    gate: bool = False
    gains: dict[str, float] = field(default_factory=dict)
    frozen: bool = False
    history: dict[str, list[float]] = field(default_factory=dict)
    epoch: dict[str, list[GradientRatio]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    power: float = 0.0
    masses: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor | int = 0

    def __post_init__(self) -> None:
        if not self.gains:
            self.gains = {n: w.nominal if self.calibrate else w.asked for n, w in self.asked.items()}
        self.frozen = self.frozen or not self.calibrate

    def update(self, ratios: dict[str, GradientRatio], scales: dict[str, float]) -> None:
        """Take in one batch's gradient ratios: adjust gains that are not final, set the gate, note the shares.

        Args:
            ratios: by term.
            scales: each term's trunk scale, by which its loss is multiplied as well.
        """
        for name, r in ratios.items():
            usable = 0 < r.strength < float("inf")  # neither dead nor NaN
            if usable and not self.frozen:
                self.history.setdefault(name, []).append(r.strength * scales[name])
                late = self.history[name][len(self.history[name]) // 2 :]  # the first ones are of another student
                low, high = (limit * self.asked[name].nominal for limit in LIMITS)
                self.gains[name] = min(max(self.asked[name].asked / median(late), low), high)
            share = r.strength * scales[name] * self.gains[name]
            self.epoch.setdefault(name, []).append(GradientRatio(share, r.cosine))
            if self.gate and r.cosine < 0:
                self.gated.add(name)
            elif self.gate:
                self.gated.discard(name)

    def observe_classes(self, masses: dict[str, Tensor], labels: Tensor) -> None:
        """Add one batch's sums of the teacher's scores by class, C by branch, and its label counts, C."""
        self.masses = {branch: self.masses.get(branch, 0) + ranks.total(mass) for branch, mass in masses.items()}
        self.labels = self.labels + ranks.total(labels)

    def class_weights(self) -> dict[str, Tensor] | None:
        """The weight of each class in soft targets, C by branch; None where all count alike.

        A class that no label has named weighs 1: the teacher has it from elsewhere, and it is not the student's task.
        """
        if not self.power or not self.masses:
            return None
        return {branch: class_weights(mass * (self.labels > 0), self.power) for branch, mass in self.masses.items()}

    def freeze(self) -> bool:
        """Make the gains final, if anything has been measured; whether that happened now."""
        if self.frozen or not self.history:
            return False
        self.frozen = True
        return True

    @property
    def measured(self) -> int:
        """How many batches have been measured in this epoch."""
        return max((len(ratios) for ratios in self.epoch.values()), default=0)

    def gain(self, name: str) -> float:
        """The factor of a term's loss for the next batch: 0 while it is gated."""
        return 0.0 if name in self.gated else self.gains[name]

    def limited(self) -> list[str]:
        """Terms whose measured gain lay beyond the limits."""
        bounds = {n: [limit * self.asked[n].nominal for limit in LIMITS] for n in self.history}
        return [n for n, b in bounds.items() if self.gains[n] in b]

    def close_epoch(self) -> dict[str, GradientRatio]:
        """Each term's mean share at full weight and mean cosine in this epoch; the next epoch starts empty."""
        found = {
            n: GradientRatio(fmean(r.strength for r in rs), fmean(r.cosine for r in rs)) for n, rs in self.epoch.items()
        }
        self.epoch = {}
        return found

    def state(self) -> dict[str, Any]:
        """The state that a resumed run needs; the keys are the file's and stay."""
        fixed = {"gains": self.gains, "frozen": self.frozen, "history": self.history, "masses": self.masses}
        return {**fixed, "labels": self.labels, "shut": sorted(self.gated)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            KeyError: a term has no gain, or a field is missing.
            ValueError: a gain is not a finite number of 0 or more.
        """
        for name in self.asked:
            if not 0 <= state["gains"][name] < float("inf"):
                raise ValueError(f"the gain of {name} is {state['gains'][name]}")
        self.gains, self.frozen, self.history = state["gains"], state["frozen"], state["history"]
        self.gated, self.masses, self.labels = set(state["shut"]), state["masses"], state["labels"]
