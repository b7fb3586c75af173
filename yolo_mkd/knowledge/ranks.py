"""Sums and rows over the ranks of a DDP run, with which a loss over one rank's batch counts in the batch of all ranks.

Ultralytics multiplies each rank's loss by the number of ranks W and DDP averages the gradients, so the student follows
the sum of the ranks' losses times a rank's batch size: what has to equal the loss over all ranks' images is the mean of
the ranks' losses. A sum over images that is divided by a mass is therefore divided by the mass's mean over the ranks.
A loss that is no such sum is computed from the totals of all ranks, and is the same on each of them. Only a rank's own
part carries a gradient there, times W; the others' parts reach the student through their own ranks.

Collectives run in the forward pass only and depend on nothing that one rank alone has, so that none waits for another.
Without DDP each function returns what it was given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def count() -> int:
    """W, the number of ranks; 1 without DDP."""
    started = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if started else 1


def total(part: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, of the same shape on each."""
    return part if count() == 1 else OwnPartOfSum.apply(part)


def average(part: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, without a gradient."""
    return part if count() == 1 else total(part.detach()) / count()


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks, N C of any N in, those of the first rank first."""
    return rows if count() == 1 else OwnRows.apply(rows)


class OwnPartOfSum(torch.autograd.Function):
    """The sum over the ranks, whose gradient goes to this rank's part, times their number."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        """This rank's part in, the sum out."""
        whole = part.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> Tensor:
        """The gradient with respect to this rank's part."""
        return up * count()


class OwnRows(torch.autograd.Function):
    """The rows of all ranks, whose gradient goes to this rank's rows, times their number."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """This rank's rows in, all rows out."""
        counts = rows.new_zeros(count(), dtype=torch.long)
        counts[distributed.get_rank()] = len(rows)
        distributed.all_reduce(counts)
        lengths = counts.tolist()
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in lengths]
        distributed.all_gather(parts, padded)
        ctx.first = sum(lengths[: distributed.get_rank()])
        ctx.length = len(rows)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> Tensor:
        """The gradient with respect to this rank's rows."""
        return up[ctx.first : ctx.first + ctx.length] * count()
