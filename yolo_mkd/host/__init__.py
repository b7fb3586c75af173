"""The only package that uses Ultralytics' internals, as of version 8.4.190; all others use its public API."""

from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.utils import LOGGER, RANK, is_online
from ultralytics.utils.patches import override_configs
from ultralytics.utils.torch_utils import is_qat, unwrap_model

from yolo_mkd.host.checkpoints import CheckpointKeeper
from yolo_mkd.host.console import bars_in_one_line, is_redrawn, without_epoch_bars
from yolo_mkd.host.exact import ContinuedSampler
from yolo_mkd.host.files import (
    arguments,
    check_arguments,
    check_data,
    check_download,
    check_imgsz,
    check_labels,
    check_usable,
    find_model,
    images_in,
    one_line,
    quiet,
    with_cfg_file,
)
from yolo_mkd.host.labels import IMAGE_SUFFIXES, Assigned, add_boxes, assign, image_shape, share_of
from yolo_mkd.host.limits import check_freeze, check_values, frozen_layers
from yolo_mkd.host.loggers import log_page
from yolo_mkd.host.models import (
    UNREADABLE,
    architecture,
    architecture_name,
    build,
    freeze,
    frozen_precision,
    head,
    layer,
    load_detector,
    parameters,
    remove_head,
    task,
    write_architecture,
)
from yolo_mkd.host.optimizer import adapter_states, merged, student_only
from yolo_mkd.host.ranks import Ranked
from yolo_mkd.host.reading import (
    branch_weights,
    branches_of,
    frozen_head,
    keep_graphs,
    model_spec,
    of_first,
    outputs,
    remaining,
    shared_weights,
)
from yolo_mkd.host.reconstruction import LayerPair, read_squares, reconstruct
from yolo_mkd.host.runs import (
    annotate,
    augmentation,
    caches_folder,
    discarding_empty_run,
    metrics,
    named_metrics,
    newest_chain,
    run_folder,
    size,
    write_tensors,
)
from yolo_mkd.host.shapes import shared_multiple, widen_shapes
from yolo_mkd.host.slicing import ABSENT, start_from
from yolo_mkd.host.trust import (
    SAFE_LOAD,
    load_safely,
    may_run_downloads,
    permitting,
    read_bounded_yaml,
    refuse_code,
    safe_load,
    trusting,
    trusts,
)

load_safely()
read_bounded_yaml()
bars_in_one_line()

__all__ = [
    "ABSENT",
    "IMAGE_SUFFIXES",
    "LOGGER",
    "RANK",
    "SAFE_LOAD",
    "UNREADABLE",
    "Assigned",
    "CheckpointKeeper",
    "ContinuedSampler",
    "DetectionTrainer",
    "LayerPair",
    "OBBTrainer",
    "PoseTrainer",
    "Ranked",
    "SegmentationTrainer",
    "adapter_states",
    "add_boxes",
    "annotate",
    "architecture",
    "architecture_name",
    "arguments",
    "assign",
    "augmentation",
    "branch_weights",
    "branches_of",
    "build",
    "caches_folder",
    "check_arguments",
    "check_data",
    "check_download",
    "check_freeze",
    "check_imgsz",
    "check_labels",
    "check_usable",
    "check_values",
    "discarding_empty_run",
    "find_model",
    "freeze",
    "frozen_head",
    "frozen_layers",
    "frozen_precision",
    "head",
    "image_shape",
    "images_in",
    "is_online",
    "is_qat",
    "is_redrawn",
    "keep_graphs",
    "layer",
    "load_detector",
    "log_page",
    "may_run_downloads",
    "merged",
    "metrics",
    "model_spec",
    "named_metrics",
    "newest_chain",
    "of_first",
    "one_line",
    "outputs",
    "override_configs",
    "parameters",
    "permitting",
    "quiet",
    "read_squares",
    "reconstruct",
    "refuse_code",
    "remaining",
    "remove_head",
    "run_folder",
    "safe_load",
    "share_of",
    "shared_multiple",
    "shared_weights",
    "size",
    "start_from",
    "student_only",
    "task",
    "trusting",
    "trusts",
    "unwrap_model",
    "widen_shapes",
    "with_cfg_file",
    "without_epoch_bars",
    "write_architecture",
    "write_tensors",
]
