"""Rows of the store as messages of the contract."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from conversations.v1 import conversation_pb2, item_pb2

from server.store.conversations import etag_of
from server.store.items import StoredItem


def conversation_of(row: Mapping[str, Any]) -> conversation_pb2.Conversation:
    """The conversation a row of the store holds."""
    metadata = row["metadata"]
    message = conversation_pb2.Conversation(
        id=row["id"],
        create_time=row["create_time"],
        metadata=metadata if isinstance(metadata, dict) else json.loads(metadata),
        update_time=row["update_time"],
        etag=etag_of(row["revision"]),
        owner=row["owner"],
        last_sequence=row["last_sequence"],
    )
    for pair in row["attributes"]:
        name, _, value = pair.partition("=")
        message.attributes[name].values.append(value)
    return message


def item_of(stored: StoredItem) -> item_pb2.Item:
    """The item with its place."""
    item = item_pb2.Item.FromString(stored.body)
    item.sequence = stored.sequence
    return item


def items_of(stored: Iterable[StoredItem]) -> list[item_pb2.Item]:
    """The items with their places."""
    return [item_of(each) for each in stored]
