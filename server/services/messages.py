"""Rows of the store as messages of the contract."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from conversations.v1 import conversation_pb2, item_pb2
from conversations.v1 import conversations_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from server.store.conversations import etag_of
from server.store.items import StoredItem

Answer = TypeVar("Answer", pb.CreateItemsResponse, pb.BatchGetItemsResponse, pb.ListItemsResponse)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(moment: datetime) -> Timestamp:
    """``moment``, which has a time zone, as a message; half the time of protobuf's own way."""
    since = moment - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


def conversation_of(row: Mapping[str, Any]) -> conversation_pb2.Conversation:
    """The conversation a row of the store holds."""
    message = conversation_pb2.Conversation(
        id=row["id"],
        create_time=timestamp(row["create_time"]),
        update_time=timestamp(row["update_time"]),
        etag=etag_of(row["revision"]),
        owner=row["owner"],
        last_sequence=row["last_sequence"],
    )
    if (metadata := row["metadata"]) not in _EMPTY:
        message.metadata.update(metadata if isinstance(metadata, dict) else json.loads(metadata))
    for pair in row["attributes"]:
        name, _, value = pair.partition("=")
        message.attributes[name].values.append(value)
    return message


_EMPTY: tuple[Any, ...] = ("{}", {})


def item_of(stored: StoredItem) -> item_pb2.Item:
    """The item with its place."""
    item = item_pb2.Item.FromString(stored.body)
    item.sequence = stored.sequence
    return item


def add_items(response: Answer, stored: Iterable[StoredItem]) -> Answer:
    """``response`` with the items and their places in its field `items`.

    The bytes of a message are its fields one after the other: a response of
    stored bytes is put together without reading each item by itself.
    """
    tag = _ITEMS[type(response)]
    parts: list[bytes] = []
    for sequence, body in stored:
        place = _SEQUENCE + varint(sequence)
        parts += (tag, varint(len(body) + len(place)), body, place)
    response.MergeFromString(b"".join(parts))
    return response


def varint(number: int) -> bytes:
    """``number``, at least 0, as protobuf writes it."""
    if number < 0x80:
        return _SHORT[number]
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


_SHORT = tuple(bytes([number]) for number in range(0x80))
_SEQUENCE = varint(item_pb2.Item.DESCRIPTOR.fields_by_name["sequence"].number << 3)
_ITEMS = {
    each: varint(each.DESCRIPTOR.fields_by_name["items"].number << 3 | 2)  # 2: length-delimited
    for each in (pb.CreateItemsResponse, pb.BatchGetItemsResponse, pb.ListItemsResponse)
}
