"""Whether a network takes images as it declares: by the statistics that its batch normalisation keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor, nn

from yolo_mkd.distill.networks import READINGS, Network

EXAMINED = 8  # images of the data that are read in several ways
NORMS = 4  # the first layers of batch normalisation, whose statistics show what a network was trained on
DOUBTFUL, BETTER = 1.0, 0.5  # distance from them that is remarkable, and how much nearer another reading must be


def normalisation_warning(network: Network, images: Sequence[Path], imgsz: int) -> str:
    """A warning if the statistics of a network's first layers fit another reading of the images than the declared one.

    Batch normalisation stores the mean and variance of its inputs in training. Its inputs' mean and variance on a few
    images are nearest to them if the images are read as in its training.

    Args:
        network: with the declared reading.
        images: those of the data.
        imgsz: the size to show them at [pixels].

    Returns:
        The warning; empty if the declared reading is the nearest, or nothing shows it.
    """
    shown = read_images(images[:: max(1, len(images) // EXAMINED)][:EXAMINED], imgsz)
    if shown is None:
        return ""
    own = (network.mean, network.std, network.bgr)
    try:
        declared, found = statistics_distance(network, shown), {}
        for name, (mean, std) in READINGS.items():
            for bgr in (False, True):
                network.mean, network.std, network.bgr = mean, std, bgr
                found[f"{name}, {'BGR' if bgr else 'RGB'}"] = statistics_distance(network, shown)
    finally:
        network.mean, network.std, network.bgr = own
    if declared is None:
        return ""
    best = min(found, key=lambda name: found[name] or 0.0)
    distance = found[best] or 0.0
    if declared < DOUBTFUL or distance > BETTER * declared:
        return ""
    return (
        f"teacher={network.name}: its batch normalisation fits {best} ({distance:.2f}) better than what it declares "
        f"({declared:.2f}): check mean, std and channel_order"
    )


def read_images(files: Sequence[Path], imgsz: int) -> Tensor | None:
    """Images of a data set as squares, B 3 H W in [0, 1], red first; None if none can be read."""
    found = (cv2.imread(str(file)) for file in files)
    read = [cv2.cvtColor(cv2.resize(x, (imgsz, imgsz)), cv2.COLOR_BGR2RGB) for x in found if x is not None]
    if not read:
        return None
    return torch.stack([torch.from_numpy(image) for image in read]).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def statistics_distance(network: Network, images: Tensor) -> float | None:
    """How far the first layers' statistics on images are from those of training; None without batch normalisation."""
    if isinstance(network.model, torch.jit.ScriptModule):
        return None
    norms = [m for m in network.model.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats][:NORMS]
    if not norms:
        return None
    distances: list[float] = []

    def measure(module: Any, inputs: tuple[Tensor, ...]) -> None:
        mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
        shift = (mean - module.running_mean).abs() / (module.running_var + module.eps).sqrt()
        scale = ((variance + module.eps) / (module.running_var + module.eps)).log().abs() / 2
        distances.append(float((shift + scale).mean()))

    handles = [m.register_forward_pre_hook(measure) for m in norms]
    try:
        device = next(network.model.parameters()).device
        network.model(network.prepared(images.to(device)))
    finally:
        for handle in handles:
            handle.remove()
    return sum(distances) / len(distances) if distances else None
