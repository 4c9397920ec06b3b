"""Field masks: the paths of an UpdateConversation become a `Change` (AIP-134, AIP-161)."""

import re
from datetime import datetime

from conversations.v1 import conversation_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from server.errors import FieldInvalid, Violation
from server.policy.attributes import ATTRIBUTE_NAME, attribute_pairs
from server.requests.expiry import FIELDS, expiry_change
from server.settings.retention import RetentionRule
from server.store.changes import Change

_MAX_PATHS = 32
_PATH = re.compile(r"(?P<map>metadata|attributes)(?:\.(?:(?P<key>\w+)|`(?P<quoted>[^`]+)`))?")
_KEYS = {"metadata": re.compile(r"[^\0]{1,64}", re.DOTALL), "attributes": ATTRIBUTE_NAME}
_MAPS = ("metadata", "attributes")
_OUTPUT_ONLY = frozenset(conversation_pb2.Conversation.DESCRIPTOR.fields_by_name) - {*_MAPS, *FIELDS}


def change_of(
    conversation: conversation_pb2.Conversation, mask: FieldMask, rule: RetentionRule, now: datetime
) -> Change:
    """Returns what an update changes.

    Args:
        conversation: The values that were sent.
        mask: Which of them to take. Without paths, each field that is set (AIP-134).
        rule: Of the caller's tenant: the limit of its conversations.
        now: What `ttl` and `idle_ttl` are counted from.

    Raises:
        FieldInvalid: With every path that is unknown, or because nothing is named to change, or for an
            `expire_time` that does not lie ahead.
    """
    whole, keys = _parse(list(mask.paths) or _populated(conversation))
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
        expiry=expiry_change(conversation, whole.intersection(FIELDS), rule, now),
    )


def _populated(conversation: conversation_pb2.Conversation) -> list[str]:
    expiry = [each.name for each, _ in conversation.ListFields() if each.name in FIELDS]
    return [name for name in _MAPS if getattr(conversation, name)] + expiry


def _parse(paths: list[str]) -> tuple[set[str], dict[str, list[str]]]:
    """Returns the fields to replace, and the keys to change in each map.

    Raises:
        FieldInvalid: With every path that is unknown, or because there are too many.
    """
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
            whole |= {*_MAPS, *FIELDS}
        elif match and (key := match["key"] or match["quoted"]):
            keys[match["map"]].append(key)
            wrong += _key_violations(match["map"], key, index)
        elif match or path in FIELDS:
            whole.add(path)
        elif path not in _OUTPUT_ONLY:  # output-only fields are ignored: callers send back what they read (AIP-203)
            rule = f"must be metadata, metadata.<key>, attributes, attributes.<name>, {', '.join(FIELDS)} or *"
            wrong.append(Violation(f"update_mask.paths[{index}]", rule, "update_mask.path"))
    if wrong:
        raise FieldInvalid(*wrong)
    return whole, keys


def _key_violations(name: str, key: str, index: int) -> list[Violation]:
    """Returns the violation of a key that the contract does not allow in the map."""
    if _KEYS[name].fullmatch(key):
        return []
    return [Violation(f"update_mask.paths[{index}]", f"must name a key that {name} may have", "update_mask.key")]
