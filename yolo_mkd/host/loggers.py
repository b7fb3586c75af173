"""The page of a finished training, added to what Ultralytics' loggers have stored of it.

Their runs end with the training, before its page is written: a W&B run is resumed by its ID, as Ultralytics does it,
MLflow takes files of a finished run, and TensorBoard takes text alone.
"""

from __future__ import annotations

import re
from pathlib import Path

from ultralytics.utils import LOGGER, SETTINGS

from yolo_mkd.host.files import one_line


def log_page(page: Path, run: Path) -> list[str]:
    """Add a page to the loggers that are switched on in Ultralytics' settings and that have stored a training.

    Args:
        page: the HTML file.
        run: the folder of an Ultralytics training that has ended.

    Returns:
        The loggers that have it. What a logger fails at is a warning: the training has ended and is stored.
    """
    stored = []
    for name, store in (("tensorboard", to_tensorboard), ("mlflow", to_mlflow), ("wandb", to_wandb)):
        if SETTINGS.get(name) is not True:
            continue
        try:
            if store(page, run):
                stored.append(name)
        except ImportError:  # switched on, and not installed
            continue
        except Exception as error:  # of the logger or its server
            LOGGER.warning(f"M-KD: {name} did not store the page: {one_line(error)[:200]}")
    return stored


def to_tensorboard(page: Path, run: Path) -> bool:
    """Write the page's place as text, since TensorBoard holds no files; False where nothing was logged."""
    from torch.utils.tensorboard import SummaryWriter

    if not any(run.glob("events.out.tfevents.*")):
        return False
    with SummaryWriter(str(run)) as writer:
        writer.add_text("report", f"[{page.name}]({page.absolute().as_uri()})")
    return True


def to_mlflow(page: Path, run: Path) -> bool:
    """Add the page to the files of the training's newest MLflow run; False where there is none."""
    import mlflow

    client = mlflow.MlflowClient()
    places = [experiment.experiment_id for experiment in client.search_experiments()]
    where, order = f'params.save_dir = "{run}"', ["attributes.start_time DESC"]
    found = client.search_runs(places, filter_string=where, order_by=order, max_results=1)
    for one in found:
        client.log_artifact(one.info.run_id, str(page))
    return bool(found)


def to_wandb(page: Path, run: Path) -> bool:
    """Add the page as an artifact to the training's newest W&B run; False where there is none.

    Offline this makes a second folder with the same run ID, for `wandb sync`.
    """
    import wandb

    newest = max((run / "wandb").glob("*run-*/run-*.wandb"), key=lambda f: f.stat().st_mtime, default=None)
    if newest is None:
        return False
    own = newest.stem.removeprefix("run-")
    project = re.sub(r"[/\\#?%:]", "-", str(run.parent))[-128:]  # as Ultralytics names it
    offline = newest.parent.name.startswith("offline-")
    with wandb.init(
        project=project,
        name=run.name,
        id=own,
        resume="allow",
        dir=str(run),
        mode="offline" if offline else None,
    ) as resumed:
        artifact = wandb.Artifact(name=f"run_{own}_report", type="report")
        artifact.add_file(str(page))
        resumed.log_artifact(artifact)
    return True
