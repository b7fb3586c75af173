"""Choose an assistant: the model size midway between a student and a much larger teacher.

Mirzadeh et al. (AAAI 2020) choose the assistant whose accuracy is nearest the mean of the two. Production recipes are
similar: they distil from the adjacent size or the one after it.
"""

from __future__ import annotations

import math
import re

from yolo_mkd import host
from yolo_mkd.settings import BadInput

SIZES = "nsmlx"
# COCO val mAP50-95 of YOLO26 by size (Ultralytics documentation); the sizes of other families are spaced similarly
ACCURACY = {"n": 40.9, "s": 48.6, "m": 53.1, "l": 55.0, "x": 57.5}
ENDINGS = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb"}  # of a model's name by its task
LEAST_RATIO = 1.5  # times the parameters that an assistant must at least be apart from teacher and student
FAR = 8.0  # times the parameters: further apart, distillation may work badly (Mirzadeh et al., AAAI 2020)
BRIDGE = "try more epochs first, then a model of a size between them (assistant=)"  # in this order: see RESULTS.md


def family_and_size(path: str) -> tuple[str, str]:
    """Family and size letter of a model file's architecture, such as ('yolo26', 'n'); '' where unknown."""
    found = re.match(r"(yolov?\d+)(?:([nsmlx])(?:-seg|-pose|-obb)?$)?", host.architecture_name(path))
    return (found.group(1), found.group(2) or "") if found else ("", "")


def choose(student: str, teacher: str) -> tuple[str | None, str]:
    """Choose an assistant of the same family and of the student's task.

    Args:
        student: the student's .pt or .yaml.
        teacher: the teacher's.

    Returns:
        A file name with the student's suffix, or None if no size lies between; and the reason as text.
    """
    (family, small), (other, large) = family_and_size(student), family_and_size(teacher)
    if not family or family != other:
        return None, "student and teacher are not of the same known family: to use an assistant, name one (assistant=)"
    ending = ENDINGS[host.task(student)]
    suffix = ".yaml" if student.endswith(".yaml") else ".pt"
    parameters = {"student": host.parameters(student), "teacher": host.parameters(teacher)}
    between = []
    for size in SIZES:
        try:
            count = host.parameters(host.find_model("assistant", f"{family}{size}{ending}.yaml"))
        except BadInput:
            continue  # the family does not have this size
        if count / parameters["student"] >= LEAST_RATIO and parameters["teacher"] / count >= LEAST_RATIO:
            between.append((size, count))
    if not between:
        return None, f"no size of {family} lies {LEAST_RATIO} x in parameters or more from both of them"
    if small and large:
        middle = (ACCURACY[small] + ACCURACY[large]) / 2
        size = min(between, key=lambda b: abs(ACCURACY[b[0]] - middle))[0]
        reason = f"its COCO accuracy {ACCURACY[size]} is nearest the midpoint {middle:.1f} mAP"
        return f"{family}{size}{ending}{suffix}", reason
    middle = math.sqrt(parameters["student"] * parameters["teacher"])
    size, count = min(between, key=lambda b: abs(math.log(b[1] / middle)))
    reason = f"its {count / 1e6:.1f} M parameters are nearest the midpoint {middle / 1e6:.1f} M"
    return f"{family}{size}{ending}{suffix}", reason
