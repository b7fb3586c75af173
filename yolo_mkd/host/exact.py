"""The state with which a resumed run ends bit for bit like one that was never interrupted.

Ultralytics resumes from weights and optimizer in half precision, replaces the trained weights by their moving average,
and starts the random generators, the order of the images and the accumulation of gradients anew. Here all of that is
kept in full. It holds on a CPU with the images loaded in the training's process; `approximations` lists what else
differs.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, distributed
from ultralytics.utils.torch_utils import unwrap_model

from yolo_mkd.host.models import UNREADABLE

TEACHER = "teacher_model."  # begins the names of a frozen model's weights in Ultralytics' own distillation


class LoaderState(TypedDict):
    """Where the training loader is.

    Attributes:
        generator: state of its generator before its current iterator was made.
        first: the epoch in which that was.
        now: state of its generator.
        batches: of an epoch.
        buffer: indices of the images that mosaics are made of, in their order.
    """

    generator: Tensor
    first: int
    now: Tensor
    batches: int
    buffer: list[int]


class RankState(TypedDict):
    """What one rank of a DDP run has of its own.

    Attributes:
        buffers: of the model, such as the statistics of batch norm.
        gradients: as in ExactState; the adapters' are averaged over the ranks with each step only.
        random: as in ExactState.
        loader: as in ExactState.
    """

    buffers: dict[str, Tensor]
    gradients: list[Tensor | None]
    random: dict[str, Any]
    loader: LoaderState


class ExactState(TypedDict):
    """All that a resumed run continues from.

    Attributes:
        epoch: that has ended, from 0.
        model: the trained weights.
        ema: their moving average.
        updates: steps in it.
        optimizer: its state, the adapters' part included.
        gradients: of each trained parameter, accumulated for the next step; empty where there are none.
        last_step: the batch of the last step, counted over all epochs; -1 before the first.
        stopping: whether Ultralytics' early stopping may come with the next epoch.
        random: states of the generators of Python, numpy and torch.
        loader: where the training loader is.
        ranks: what each rank of a DDP run has of its own; all above is the first rank's. Empty without DDP.
    """

    epoch: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    updates: int
    optimizer: dict[str, Any]
    gradients: list[Tensor | None]
    last_step: int
    stopping: bool
    random: dict[str, Any]
    loader: LoaderState
    ranks: list[RankState]


class ExactRun:
    """Follows a training through its epochs, so that its state can be taken and restored between two of them."""

    def __init__(self) -> None:
        self.last_step = -1
        self._updates = self._batch = 0
        self._iterator: Any = None  # the loader's, as it was last seen
        self._began: Tensor | None = None  # the generator's state at the start of the epoch
        self._made: tuple[Tensor, int] | None = None  # as LoaderState's `generator` and `first`
        self._replayed = False  # the next iterator continues from `_made`
        self._ranks: list[RankState] = []  # of the epoch that has ended, on the first rank

    def begin_epoch(self, trainer: Any) -> None:
        """Note where the loader is."""
        self._began, self._batch = trainer.train_loader.generator.get_state(), 0

    def end_batch(self, trainer: Any) -> None:
        """Note whether the batch ended with a step."""
        if trainer.ema.updates != self._updates:
            self._updates = trainer.ema.updates
            self.last_step = self._batch + len(trainer.train_loader) * trainer.epoch
        self._batch += 1

    def end_epoch(self, trainer: Any) -> None:
        """Note whether the loader made a new iterator, at first and when mosaic is closed, and what each rank has."""
        if trainer.train_loader.iterator is not self._iterator:
            self._iterator = trainer.train_loader.iterator
            if not self._replayed and self._began is not None:
                self._made = self._began, trainer.epoch
            self._replayed = False
        if trainer.world_size > 1:
            first = distributed.get_rank() == 0
            found: list[Any] = [None] * trainer.world_size
            distributed.gather_object(self._of_rank(trainer), found if first else None)
            self._ranks = found if first else []

    def _of_rank(self, trainer: Any) -> RankState:
        """What this rank has of its own."""
        pending = [None if p.grad is None else p.grad.cpu() for p in parameters(trainer.optimizer)]
        return {
            "buffers": {name: value.cpu() for name, value in unwrap_model(trainer.model).named_buffers()},
            "gradients": pending if any(g is not None for g in pending) else [],
            "random": random_states(),
            "loader": self._of_loader(trainer.train_loader),
        }

    def _of_loader(self, loader: Any) -> LoaderState:
        """Where the training loader is; its iterator must have been seen."""
        assert self._made is not None
        return {
            "generator": self._made[0],
            "first": self._made[1],
            "now": loader.generator.get_state(),
            "batches": len(loader),
            "buffer": list(getattr(loader.dataset, "buffer", [])),
        }

    def state(self, trainer: Any) -> ExactState | None:
        """The state after an epoch; None where the run's epochs have not been followed."""
        if self._made is None:
            return None
        weights = unwrap_model(trainer.model).state_dict()
        pending = [p.grad for p in parameters(trainer.optimizer)]
        return {
            "epoch": int(trainer.epoch),
            "model": {name: value for name, value in weights.items() if not name.startswith(TEACHER)},
            "ema": trainer.ema.ema.state_dict(),
            "updates": trainer.ema.updates,
            "optimizer": trainer.optimizer.state_dict(),
            "gradients": pending if any(g is not None for g in pending) else [],
            "last_step": self.last_step,
            "stopping": bool(trainer.stopper.possible_stop),
            "random": random_states(),
            "loader": self._of_loader(trainer.train_loader),
            "ranks": self._ranks,
        }

    def restore(self, trainer: Any, state: ExactState) -> None:
        """Continue from a state; call it after Ultralytics has resumed, before the first epoch.

        Args:
            trainer: Ultralytics' trainer, set up.
            state: of the epoch before its first one.
        """
        student = unwrap_model(trainer.model)
        student.load_state_dict(state["model"], strict=False)
        if trainer.world_size > 1 and len(state["ranks"]) == trainer.world_size:
            own = state["ranks"][distributed.get_rank()]
            student.load_state_dict(own["buffers"], strict=False)
            state = {**state, "gradients": own["gradients"], "random": own["random"], "loader": own["loader"]}
        trainer.ema.ema.load_state_dict(state["ema"])
        trainer.ema.updates = self._updates = state["updates"]
        for group, saved in zip(trainer.optimizer.param_groups, state["optimizer"]["param_groups"], strict=True):
            saved["fused"] = group.get("fused")  # the device decides
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.stopper.possible_stop, self.last_step = state["stopping"], state["last_step"]
        if len(trainer.train_loader) == state["loader"]["batches"]:  # else the user resumes with another batch size
            self._continue_loading(trainer, state["loader"])
            PendingStep(trainer, state["gradients"], self.last_step).install()
        restore_random_states(state["random"])

    def _continue_loading(self, trainer: Any, saved: LoaderState) -> None:
        """Put the loader where it was: the images of its buffer, and the order of those that come next."""
        loader = trainer.train_loader
        closes = trainer.epochs - trainer.args.close_mosaic if trainer.args.close_mosaic else None
        if closes == trainer.start_epoch:  # the next epoch begins with a new iterator
            saved = {**saved, "generator": saved["now"], "first": trainer.start_epoch}
        loader.generator.set_state(saved["generator"].cpu())
        self._made, self._replayed = (saved["generator"].cpu(), saved["first"]), True
        skip = (trainer.start_epoch - saved["first"]) * saved["batches"]
        # torch's DataLoader refuses to set this attribute after its __init__, so its __setattr__ is bypassed
        object.__setattr__(
            loader, "batch_sampler", ContinuedSampler(loader.batch_sampler, skip, trainer, saved["first"])
        )
        if loader.num_workers == 0 and saved["buffer"]:
            refill(loader.dataset, saved["buffer"])


class ContinuedSampler:
    """A loader's batches without those of the epochs before a kill, whose order is drawn again and left out.

    Attributes:
        sampler: of one epoch's batches, from which Ultralytics' loader takes their number.
    """

    def __init__(self, batches: Any, skip: int, trainer: Any, first: int):
        """Wrap a batch sampler.

        Args:
            batches: the loader's own.
            skip: how many batches to leave out, once.
            trainer: whose epoch a sampler may follow.
            first: the epoch of the first batch that is left out.
        """
        self.sampler = batches.sampler
        self._batches, self._skip, self._trainer, self._first = batches, skip, trainer, first

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._batches)
        if self._skip:
            trainer, first = self._trainer, self._first
            epochs = trainer.epoch, trainer.start_epoch
            trainer.epoch = trainer.start_epoch = first
            for _ in range(self._skip):
                next(batches)
            trainer.epoch, trainer.start_epoch = epochs
            self._skip = 0
        yield from batches


class Held(int):
    """A value of `trainer.accumulate` with which no step comes."""


class PendingStep:
    """Lets the first step of a resumed run come when it would have come, with the gradients before the kill.

    Ultralytics counts batches since the last step in a variable of its loop, which begins at -1, and steps once these
    are `trainer.accumulate`. It sets that in the warm-up before each batch is preprocessed, so it is raised there until
    the step is due.
    """

    def __init__(self, trainer: Any, gradients: list[Tensor | None], last_step: int):
        """Take what is pending.

        Args:
            trainer: Ultralytics' trainer.
            gradients: accumulated for the next step.
            last_step: the batch of the last step, counted over all epochs.
        """
        self.trainer, self.gradients, self.last_step = trainer, gradients, last_step
        self.nominal = trainer.accumulate
        self.batch = trainer.start_epoch * len(trainer.train_loader)
        self.preprocess: Callable[[Any], Any] = trainer.preprocess_batch
        self.done = False

    def install(self) -> None:
        """Watch each batch until the step."""
        self.trainer.preprocess_batch = self

    def __call__(self, batch: Any) -> Any:
        """Preprocess a batch as the trainer does, and set `accumulate` for it."""
        if self.done:
            return self.preprocess(batch)
        trainer = self.trainer
        for p, gradient in zip(parameters(trainer.optimizer), self.gradients, strict=False):
            p.grad = None if gradient is None else gradient.to(p)
        self.gradients = []
        wanted = self.nominal if isinstance(trainer.accumulate, Held) else trainer.accumulate
        self.done = self.batch - self.last_step >= wanted
        trainer.accumulate = wanted if self.done else Held(self.batch + 2)
        self.batch += 1
        return self.preprocess(batch)


def parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """All that an optimizer trains, in the order of its groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def refill(dataset: Any, buffer: list[int]) -> None:
    """Load a data set's buffered images again, in their order.

    Args:
        dataset: Ultralytics' data set.
        buffer: indices of the images.
    """
    for index in dataset.buffer:
        dataset.ims[index] = dataset.im_hw0[index] = dataset.im_hw[index] = None
    dataset.buffer.clear()
    for index in buffer:
        dataset.load_image(index)  # which appends it


def random_states() -> dict[str, Any]:
    """The states of the random generators of Python, numpy and torch, as `torch.load` can read safely."""
    numpy: Any = np.random.get_state()
    found = {
        "python": random.getstate(),
        "numpy": [numpy[0], numpy[1].tolist(), *(n for n in numpy[2:])],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore what `random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state((states["numpy"][0], np.array(states["numpy"][1], np.uint32), *states["numpy"][2:]))
    torch.set_rng_state(states["torch"].cpu())
    if torch.cuda.is_available() and len(states.get("cuda", [])) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


def read_state(file: Path) -> ExactState | None:
    """A state from its file; None where it is missing or damaged."""
    with contextlib.suppress(*UNREADABLE):
        found: ExactState = torch.load(file, map_location="cpu", weights_only=True)
        return {**found, "ranks": found.get("ranks", [])}
    return None


def approximations(trainer: Any, ranks: int) -> list[str]:
    """Why a resumed run of a trainer may end with other weights than an uninterrupted one; empty where it cannot.

    Args:
        trainer: Ultralytics' trainer, set up.
        ranks: of a DDP run before; 0 without DDP.
    """
    loader, found = trainer.train_loader, []
    if trainer.device.type != "cpu":
        found.append(f"device={trainer.args.device}: a GPU may round the same sum differently each time")
    if loader.num_workers and not hasattr(loader.dataset, "views"):
        found.append(f"workers={loader.num_workers}: processes that load images draw their own random numbers")
    if trainer.world_size > 1 and ranks != trainer.world_size:
        found.append(f"{trainer.world_size} ranks, and {ranks or 1} before")
    if trainer.args.time:
        found.append(f"time={trainer.args.time}: the number of epochs follows from the clock")
    return found
