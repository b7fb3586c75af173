"""The user's arguments: M-KD's own table, defaults and presets, the command line's values, and the errors.

In reading order: `errors`, `arguments` (what each value must be), `defaults` (defaults < preset < given), `values`
(key=value words), `commands` (arguments of single commands, for their help), `yaml_text`. No file here imports
torch or Ultralytics.
"""

from yolo_mkd.settings.arguments import ARGUMENTS, KD_OPTIONS, TERM_NAMES, check_argument, file_path, number, switch
from yolo_mkd.settings.defaults import (
    NOMINAL_GAINS,
    argument_sections,
    defaults,
    help_text,
    preset,
    preset_names,
    resolve,
    shipped,
)
from yolo_mkd.settings.errors import BadInput, Failed, refuse_unknown
from yolo_mkd.settings.values import parse, split_commas, value_of
from yolo_mkd.settings.yaml_text import BoundedLoader, load_yaml

__all__ = [
    "ARGUMENTS",
    "KD_OPTIONS",
    "NOMINAL_GAINS",
    "TERM_NAMES",
    "BadInput",
    "BoundedLoader",
    "Failed",
    "argument_sections",
    "check_argument",
    "defaults",
    "file_path",
    "help_text",
    "load_yaml",
    "number",
    "parse",
    "preset",
    "preset_names",
    "refuse_unknown",
    "resolve",
    "shipped",
    "split_commas",
    "switch",
    "value_of",
]
