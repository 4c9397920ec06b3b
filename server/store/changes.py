"""Changes of a conversation's metadata and attributes: what an update changes, and what it needs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from server.authorization.access import Access
from server.authorization.permission import Permission
from server.errors import LimitExceeded, Violation
from server.store.expiry import ExpiryChange
from server.store.sql.conversations import MAX_PAIRS


@dataclass(frozen=True)
class Change:
    """What an update changes.

    Attributes:
        metadata: Pairs to set.
        drop_metadata: Keys to remove.
        replace_metadata: Whether all other pairs are removed.
        attributes: To add, each ``name=value``.
        drop_attributes: Names whose values are removed first; names that get new values are among them.
        replace_attributes: Whether all other attributes are removed.
        expiry: When the conversation ends; None if that stays.
    """

    metadata: dict[str, str] = field(default_factory=dict)
    drop_metadata: Sequence[str] = ()
    replace_metadata: bool = False
    attributes: Sequence[str] = ()
    drop_attributes: Sequence[str] = ()
    replace_attributes: bool = False
    expiry: ExpiryChange | None = None

    @property
    def updates(self) -> bool:
        """Whether it changes what the action update is about."""
        return bool(self.replace_metadata or self.metadata or self.drop_metadata or self.expiry)

    @property
    def shares(self) -> bool:
        """Whether it changes what the action share is about."""
        return bool(self.replace_attributes or self.attributes or self.drop_attributes)

    def values(self) -> dict[str, Any]:
        """The parameters of the statement `change`."""
        return {
            "new_metadata": json.dumps(self.metadata, ensure_ascii=False),
            "drop_metadata": self.drop_metadata,
            "replace_metadata": self.replace_metadata,
            "new_attributes": self.attributes,
            "drop_attributes": self.drop_attributes,
            "replace_attributes": self.replace_attributes,
            **(self.expiry.values() if self.expiry else {}),
        }


def permissions_to(change: Change, access: Access) -> tuple[Permission, ...]:
    """The permissions that a change needs: update for metadata and expiry, share for attributes.

    New attributes must be the caller's own, unless it may share every conversation.

    Raises:
        ActionDenied: The policy never lets the caller make such a change.
    """
    permissions = []
    if change.updates:
        permissions.append(access.demand("conversation", "update"))
    if change.shares:
        permissions.append(access.demand("conversation", "share"))
        access.decide_values(change.attributes)
    return tuple(permissions)


def too_many_pairs(row: asyncpg.Record, change: Change) -> LimitExceeded | None:
    """The error of a change that would give a conversation too many metadata keys or attribute names, if it would."""
    kept_keys = set() if change.replace_metadata else set(json.loads(row["metadata"]))
    kept_names = set() if change.replace_attributes else set(map(_name_of, row["attributes"]))
    maps = {
        "metadata": (kept_keys - set(change.drop_metadata)) | change.metadata.keys(),
        "attributes": (kept_names - set(change.drop_attributes)) | set(map(_name_of, change.attributes)),
    }
    for field_name, names in maps.items():
        if len(names) > MAX_PAIRS:
            rule = f"would have more than {MAX_PAIRS} pairs"
            return LimitExceeded(Violation(f"conversation.{field_name}", rule, "map.max_pairs"), MAX_PAIRS)
    return None


def _name_of(attribute: str) -> str:
    return attribute.partition("=")[0]
