"""YAML of configuration files."""

from collections.abc import Hashable
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice; PyYAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        """Returns the mapping of ``node``."""
        names = [str(key.value) for key, _ in node.value]
        if len(names) != len(set(names)):
            raise yaml.YAMLError("a key occurs twice")
        return super().construct_mapping(node, deep)


def load_yaml(body: bytes) -> Any:
    """Returns what a file holds.

    Raises:
        ValueError: It is not YAML, or a key occurs twice.
    """
    try:
        return yaml.load(body, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ValueError("not YAML, or a key occurs twice") from None
