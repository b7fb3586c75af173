"""Reading of YAML that somebody else wrote: text that aliases or nesting make endless is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from yaml import SafeLoader as Loader
else:
    Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is some ten times as fast

DEEPEST = 100  # levels; our own files have at most 8
MOST_TIMES = 10  # that aliases may lengthen a text
FREE = 2**20  # characters that it may have with them in any case


class BoundedLoader(Loader):
    """PyYAML's safe loader, for files whose contents are of the size of their text.

    A few lines of anchors and aliases can stand for billions of values. The loader shares them, so it is fast, and
    whatever walks through them afterwards does not end.
    """

    def __init__(self, stream: Any):
        """As PyYAML's loader; the text is a string or a file."""
        self.text = stream if isinstance(stream, str | bytes) else stream.read()
        super().__init__(self.text)

    def get_single_node(self) -> Any:
        """The file's only document.

        Raises:
            ValueError: aliases repeat too much of it, one contains itself, or it is nested too deeply.
        """
        node = super().get_single_node()
        if node is not None:
            size, _ = extent(node, {}, 1)
            if size > max(FREE, MOST_TIMES * len(self.text)):
                raise ValueError("its aliases repeat its contents too often")
        return node


def extent(node: yaml.Node, known: dict[int, tuple[int, int] | None], level: int) -> tuple[int, int]:
    """The characters of a node with its aliases written out, and its levels.

    Args:
        node: of a composed document.
        known: the results by the `id` of the nodes so far; None for those that contain this one.
        level: of this node, from 1.

    Raises:
        ValueError: an alias contains itself, or there are more than `DEEPEST` levels.
    """
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise ValueError("an alias in it contains itself")
        size, levels = found
    else:
        if level > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        known[id(node)] = None
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = list(node.value)
        elif isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        inside = [extent(child, known, level + 1) for child in children]
        own = 1 if children else 1 + len(node.value)
        size, levels = own + sum(s for s, _ in inside), 1 + max((n for _, n in inside), default=0)
        known[id(node)] = (size, levels)
    if level + levels - 1 > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    return size, levels


def load_yaml(text: str) -> Any:
    """The contents of a YAML text.

    Raises:
        yaml.YAMLError: it is not valid YAML.
        ValueError: see `BoundedLoader`; or a date in it is impossible.
    """
    return yaml.load(text, Loader=BoundedLoader)
