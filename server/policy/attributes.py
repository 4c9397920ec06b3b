"""Attributes: names, and their values as ``name=value`` texts, which is how rows keep them."""

import re
from collections.abc import Iterable, Mapping

# As in the contract, conversation.proto. A name holds no `=`, so that the first one ends it.
ATTRIBUTE_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def attribute_pairs(attributes: Mapping[str, Iterable[str]]) -> list[str]:
    """Returns ``name=value`` for each value of each name."""
    return [f"{name}={value}" for name, values in attributes.items() for value in values]


def group_pairs(pairs: Iterable[str]) -> dict[str, list[str]]:
    """Returns the values of ``name=value`` texts by name; names and values keep their order."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        found.setdefault(name, []).append(value)
    return found
