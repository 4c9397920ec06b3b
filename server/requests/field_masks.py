"""Update masks: the paths of an UpdateConversation become a Change (AIP-134, AIP-161)."""

import re
from collections.abc import Mapping

from conversations.v1 import conversation_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from server.errors import FieldInvalid, Violation
from server.store.conversations import Change

_MAX_PATHS = 32
_PATH = re.compile(r"(?P<map>metadata|attributes)(?:\.(?:(?P<key>\w+)|`(?P<quoted>[^`]+)`))?")
_KEYS = {"metadata": re.compile(r"[^\0]{1,64}", re.DOTALL), "attributes": re.compile(r"[a-z][a-z0-9_]{0,63}")}
_OUTPUT_ONLY = frozenset(conversation_pb2.Conversation.DESCRIPTOR.fields_by_name) - {"metadata", "attributes"}


def change_of(conversation: conversation_pb2.Conversation, mask: FieldMask) -> Change:
    """What the update does.

    Raises:
        FieldInvalid: Every path that is unknown, or nothing to change at all.
    """
    whole, keys = _read(list(mask.paths) or _populated(conversation))
    if not whole and not any(keys.values()):
        raise FieldInvalid(Violation("update_mask", "names nothing to change", "update_mask.empty"))
    attributes = {name: list(values.values) for name, values in conversation.attributes.items()}
    named = attributes if "attributes" in whole else {k: attributes.get(k, []) for k in keys["attributes"]}
    metadata = dict(conversation.metadata)
    return Change(
        metadata=metadata if "metadata" in whole else {k: metadata[k] for k in keys["metadata"] if k in metadata},
        drop_metadata=[key for key in keys["metadata"] if key not in metadata],
        replace_metadata="metadata" in whole,
        attributes=attribute_pairs(named),
        drop_attributes=list(keys["attributes"]),
        replace_attributes="attributes" in whole,
    )


def attribute_pairs(attributes: Mapping[str, list[str]]) -> list[str]:
    """``name=value`` for each value, as the store keeps them."""
    return [f"{name}={value}" for name, values in attributes.items() for value in values]


def _populated(conversation: conversation_pb2.Conversation) -> list[str]:
    return [name for name in ("metadata", "attributes") if getattr(conversation, name)]


def _read(paths: list[str]) -> tuple[set[str], dict[str, list[str]]]:
    """The maps to replace, and the keys to change in each map."""
    whole: set[str] = set()
    keys: dict[str, list[str]] = {"metadata": [], "attributes": []}
    wrong: list[Violation] = []
    if len(paths) > _MAX_PATHS:
        raise FieldInvalid(
            Violation("update_mask.paths", f"must have at most {_MAX_PATHS} paths", "repeated.max_items")
        )
    for index, path in enumerate(paths):
        match = _PATH.fullmatch(path)
        if path == "*":
            whole |= {"metadata", "attributes"}
        elif match and (key := match["key"] or match["quoted"]):
            keys[match["map"]].append(key)
            wrong += _key_violations(match["map"], key, index)
        elif match:
            whole.add(path)
        elif path not in _OUTPUT_ONLY:  # those are ignored: callers send back what they read
            rule = "must be metadata, metadata.<key>, attributes, attributes.<name> or *"
            wrong.append(Violation(f"update_mask.paths[{index}]", rule, "update_mask.path"))
    if wrong:
        raise FieldInvalid(*wrong)
    return whole, keys


def _key_violations(name: str, key: str, index: int) -> list[Violation]:
    """A key that the map could not have (the contract's rules of its keys)."""
    if _KEYS[name].fullmatch(key):
        return []
    return [Violation(f"update_mask.paths[{index}]", f"must name a key that {name} may have", "update_mask.key")]
