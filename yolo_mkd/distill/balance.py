"""How much each term weighs: gains measured once on the run's own gradients, then frozen, and the gate.

The value of a loss says little about its pull: at its nominal gain the relation loss is 2 % of the detection loss in
value and 29 % in gradient. So users ask for shares of the detection loss's gradient. Normalising by values all along
would moreover let a term that is nearly learnt grow without end; measuring once does not. After the idea of GradNorm
(Chen et al., ICML 2018); the gate after Du et al. (arXiv 1812.02224).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, distributed, nn

READINGS = 12  # before the gains are frozen
LIMITS = (0.05, 20.0)  # times the nominal gain: beyond, a measurement says more about a dead term than about its weight
EPS = 1e-7
SCALE = 1024.0  # keeps half-precision gradients of small losses from vanishing; a power of two, so nothing else changes


@dataclass(frozen=True)
class GradientRatio:
    """One term's gradient on one batch, compared with the detection loss's.

    Attributes:
        strength: its norm over the detection gradient's, without any gain.
        cosine: of the angle between the two; below 0 the term pulls against the task.
    """

    strength: float
    cosine: float


def read(task: Tensor, losses: dict[str, Tensor], weights: list[nn.Parameter]) -> dict[str, GradientRatio]:
    """Compare the gradients of some losses with the task's. The graph stays usable.

    Args:
        task: the detection loss per image, a scalar.
        losses: each term's loss, a scalar.
        weights: those that the gradients are taken by.

    Returns:
        A reading by term, the mean over the ranks of a DDP run; not finite where a gradient is not.
    """

    def gradient(loss: Tensor) -> Tensor:
        found = torch.autograd.grad(SCALE * loss, weights, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]
        return torch.cat([p.flatten() for p in parts]).float()

    base = gradient(task)
    rows = []
    for loss in losses.values():
        g = gradient(loss) if loss.requires_grad else torch.zeros_like(base)
        rows.append(torch.stack([g.norm() / base.norm(), torch.cosine_similarity(g, base, dim=0)]))
    table = torch.stack(rows)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(table)
        table /= distributed.get_world_size()
    return {name: GradientRatio(*values) for name, values in zip(losses, table.tolist(), strict=True)}


def class_weights(masses: Tensor, power: float) -> Tensor:
    """Weights of classes, mass^-power, so scaled that the weighted masses have the sum of the masses.

    Args:
        masses: how much score the teacher has given to each class, C. One that it has never seen weighs 1; less than
            one sure anchor counts as one.
        power: 0 weighs anchors alike, 1 classes alike.
    """
    weights = masses.clamp(min=1) ** -power
    weights = weights * (masses.sum() / (weights * masses).sum().clamp(min=EPS))
    return torch.where(masses > 0, weights, 1.0)


@dataclass(frozen=True)
class TermWeight:
    """What is asked of one term.

    Attributes:
        asked: its share of the detection gradient or, without calibration, its plain gain.
        gain: the plain gain where nothing is measured.
        share: the share that this gain usually gives.
    """

    asked: float
    gain: float
    share: float


@dataclass
class GradientBalancer:
    """The gains of one teacher's terms through a run.

    Attributes:
        wishes: what is asked of each term.
        calibrate: measure the gains; else `asked` is the gain.
        gate: leave a term out while it pulls against the task.
        gains: what each term's loss is multiplied by now.
        frozen: whether the gains are final.
        history: readings of each term until then.
        epoch: readings of each term in this epoch, as shares at full weight.
        shut: terms whose gate is shut.
        power: of the class weights of soft targets.
        masses: how much score the teacher has given to each class until the gains were final, C by branch.
        labels: how many labels each class had until then, C.
    """

    weights_asked: dict[str, TermWeight]
    calibrate: bool = True
    gate: bool = False
    gains: dict[str, float] = field(default_factory=dict)
    frozen: bool = False
    history: dict[str, list[float]] = field(default_factory=dict)
    epoch: dict[str, list[GradientRatio]] = field(default_factory=dict)
    shut: set[str] = field(default_factory=set)
    power: float = 0.0
    masses: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor | int = 0

    def __post_init__(self) -> None:
        if not self.gains:
            self.gains = {n: self.usual(n) if self.calibrate else w.asked for n, w in self.weights_asked.items()}
        self.frozen = self.frozen or not self.calibrate

    def usual(self, name: str) -> float:
        """The gain that usually gives the share that is asked of a term."""
        wish = self.weights_asked[name]
        return wish.gain * wish.asked / wish.share

    def hear(self, readings: dict[str, GradientRatio], stays: dict[str, float]) -> None:
        """Take in one batch's readings: adjust gains that are not final, set the gate, note the shares.

        Args:
            readings: by term.
            stays: what is left of each term, by which it is multiplied as well.
        """
        for name, r in readings.items():
            sound = 0 < r.strength < float("inf")  # neither dead nor NaN
            if sound and not self.frozen:
                self.history.setdefault(name, []).append(r.strength * stays[name])
                late = self.history[name][len(self.history[name]) // 2 :]  # the first readings are of another student
                low, high = (limit * self.usual(name) for limit in LIMITS)
                self.gains[name] = min(max(self.weights_asked[name].asked / median(late), low), high)
            share = r.strength * stays[name] * self.gains[name]
            self.epoch.setdefault(name, []).append(GradientRatio(share, r.cosine))
            if self.gate:
                (self.shut.add if r.cosine < 0 else self.shut.discard)(name)

    def weigh(self, masses: dict[str, Tensor], labels: Tensor) -> None:
        """Take in how much score the teacher gives to each class in one batch, C by branch, and its labels, C."""
        if distributed.is_available() and distributed.is_initialized():
            for heard in (*masses.values(), labels):
                distributed.all_reduce(heard)
        self.masses = {branch: self.masses.get(branch, 0) + mass for branch, mass in masses.items()}
        self.labels = self.labels + labels

    def classes(self) -> dict[str, Tensor] | None:
        """How much each class counts to soft targets, C by branch; None where all count alike.

        A class that no label has named weighs 1: the teacher knows it from elsewhere, and it is not the student's task.
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
    def heard(self) -> int:
        """How many batches have been measured in this epoch."""
        return max((len(readings) for readings in self.epoch.values()), default=0)

    def gain(self, name: str) -> float:
        """What a term's loss is multiplied by for the next batch: 0 while its gate is shut."""
        return 0.0 if name in self.shut else self.gains[name]

    def limited(self) -> list[str]:
        """Terms whose measured gain lay beyond the limits."""
        bounds = {n: [limit * self.usual(n) for limit in LIMITS] for n in self.history}
        return [n for n, b in bounds.items() if self.gains[n] in b]

    def close_epoch(self) -> dict[str, GradientRatio]:
        """The epoch's mean share at full weight and cosine of each term, and a clean sheet for the next."""
        found = {
            n: GradientRatio(fmean(r.strength for r in rs), fmean(r.cosine for r in rs)) for n, rs in self.epoch.items()
        }
        self.epoch = {}
        return found

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        settled = {"gains": self.gains, "frozen": self.frozen, "history": self.history, "masses": self.masses}
        return {**settled, "labels": self.labels, "shut": sorted(self.shut)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.gains, self.frozen, self.history = state["gains"], state["frozen"], state["history"]
        self.shut, self.masses, self.labels = set(state["shut"]), state["masses"], state["labels"]
