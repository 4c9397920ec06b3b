"""Rows of the store as messages of the contract."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

from conversations.v1 import conversation_pb2, item_pb2
from conversations.v1 import conversations_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from server.policy.attributes import group_pairs
from server.requests.large import run_sized
from server.store.conversations import etag_of
from server.store.expiry import NEVER_TIME
from server.store.items import StoredItem

ItemsResponse = TypeVar("ItemsResponse", pb.CreateItemsResponse, pb.BatchGetItemsResponse, pb.ListItemsResponse)
P = ParamSpec("P")

_JOINED_BYTES = 256 * 1024  # are joined in less time than a thread takes to begin
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(moment: datetime) -> Timestamp:
    """Returns an aware time as a message, in half the time of `Timestamp.FromDatetime`."""
    elapsed = moment - _EPOCH
    return Timestamp(seconds=elapsed.days * 86_400 + elapsed.seconds, nanos=elapsed.microseconds * 1_000)


def conversation_of(row: Mapping[str, Any]) -> conversation_pb2.Conversation:
    """Returns the conversation in a row of the store."""
    message = conversation_pb2.Conversation(
        id=row["id"],
        create_time=timestamp(row["create_time"]),
        update_time=timestamp(row["update_time"]),
        etag=etag_of(row["revision"]),
        owner=row["owner"],
        last_sequence=row["last_sequence"],
        active_time=timestamp(row["active_time"]),
    )
    if (metadata := row["metadata"]) not in _NO_METADATA:
        message.metadata.update(metadata if isinstance(metadata, dict) else json.loads(metadata))
    for name, values in group_pairs(row["attributes"]).items():
        message.attributes[name].values.extend(values)
    if (expire_time := row["expire_time"]) != NEVER_TIME:
        message.expire_time.CopyFrom(timestamp(expire_time))
    if idle_ttl := row["idle_ttl"]:
        message.idle_ttl.FromTimedelta(idle_ttl)
    if (source := row["forked_from"]) is not None:
        message.forked_from.conversation_id = source
        message.forked_from.sequence = row["forked_sequence"]
    return message


def revision_of(etag: str) -> int | None:
    """Returns the revision of an etag: None for an empty one, 0, which no conversation has, for one not made here."""
    if not etag:
        return None
    digits = etag.strip('"')
    known = digits.isascii() and digits.isdigit() and len(digits) < 19 and etag == etag_of(int(digits))
    return int(digits) if known else 0


_NO_METADATA: tuple[Any, ...] = ("{}", {})  # as text from the driver, or decoded


def item_of(stored: StoredItem) -> item_pb2.Item:
    """Returns the item with its sequence."""
    item = item_pb2.Item.FromString(stored.body)
    item.sequence = stored.sequence
    return item


async def with_items(response: ItemsResponse, stored: Sequence[StoredItem]) -> Any:
    """Returns the bytes of ``response`` with items in its field `items`, with their sequences.

    A serialized message is its fields one after the other, so the stored bytes are joined, and parsed by nobody
    (docs/adr/0013). More than `_JOINED_BYTES` are joined in a thread.
    """
    return await _run_join(_size_of(stored), _join, response, stored)


async def item_response(stored: StoredItem) -> Any:
    """Returns the bytes of the item with its sequence."""
    parts = stored.body, _SEQUENCE_TAG, varint(stored.sequence)
    return await _run_join(len(stored.body), b"".join, parts)


async def page_of(response: pb.ListItemsResponse, stored: Sequence[StoredItem]) -> Any:
    """Returns bytes as `with_items` does, with the ids of the first item and the last."""
    return await _run_join(_size_of(stored), _join_page, response, stored)


async def _run_join(size: int, join: Callable[P, bytes], *args: P.args, **kwargs: P.kwargs) -> bytes:
    """Returns what ``join`` returns; it runs in a thread if it joins more than `_JOINED_BYTES`."""
    return join(*args, **kwargs) if size <= _JOINED_BYTES else await run_sized(size, join, *args, **kwargs)


def _size_of(stored: Iterable[StoredItem]) -> int:
    return sum([len(body) for _, body in stored])


def _join_page(response: pb.ListItemsResponse, stored: Sequence[StoredItem]) -> bytes:
    if stored:
        response.first_id, response.last_id = item_of(stored[0]).id, item_of(stored[-1]).id
    return _join(response, stored)


def _join(response: ItemsResponse, stored: Iterable[StoredItem]) -> bytes:
    return b"".join((*item_fields(_items_tag(type(response)), stored), response.SerializeToString()))


def _items_tag(response: type[ItemsResponse]) -> bytes:
    return _ITEMS_TAGS[response]


def item_fields(tag: bytes, stored: Iterable[StoredItem]) -> list[bytes]:
    """Returns the parts of a serialized field of items, with their sequences; ``tag`` is that of the field."""
    parts: list[bytes] = []
    for sequence, body in stored:
        field = _SEQUENCE_TAG + varint(sequence)
        parts += (tag, varint(len(body) + len(field)), body, field)
    return parts


def varint(number: int) -> bytes:
    """Returns ``number``, 0 or more, in protobuf's variable-length encoding."""
    if number < 0x80:
        return _ONE_BYTE[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


_ONE_BYTE = tuple(bytes([number]) for number in range(0x80))
_SEQUENCE_TAG = varint(item_pb2.Item.DESCRIPTOR.fields_by_name["sequence"].number << 3)
_ITEMS_TAGS = {
    each: varint(each.DESCRIPTOR.fields_by_name["items"].number << 3 | 2)  # 2: length-delimited
    for each in (pb.CreateItemsResponse, pb.BatchGetItemsResponse, pb.ListItemsResponse)
}
