"""Transfers as JSON Lines: a line for the head of a conversation, for each of its items, and for its end.

    {"conversation": {"id": "conv_…", "create_time": …, …}, "resume_token": …}
    {"sequence": 1, "create_time": …, "created_by": …, "item": <OpenAI JSON>}
    {"end": {"item_count": "1", "digest": …}, "resume_token": …}

The last line of each record has its token. An item that its JSON does not give back to the byte has its message as
well, in base64 (`message`), which an import takes instead.
"""

import json
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Iterable, Iterator
from typing import Any

from conversations.v1 import conversation_pb2, item_pb2
from conversations.v1 import transfer_service_pb2 as pb
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import DecodeError

from server.errors import OperatorError
from server.items import ItemJsonError, to_json
from server.items.codec import from_json

_BLOCK_ITEMS = 1_000  # of a record, as of the contract
_BLOCK_BYTES = 1024 * 1024
_SERVER_FIELDS = ("sequence", "create_time", "created_by")


def lines_of(record: pb.Record) -> Iterator[str]:
    """Yields the lines of a record."""
    kind = record.WhichOneof("record")
    documents: list[dict[str, Any]] = (
        [_item_document(item) for item in record.items.items]
        if kind == "items"
        else [{str(kind): _fields_of(getattr(record, str(kind)))}]
    )
    if record.resume_token:
        documents[-1]["resume_token"] = record.resume_token
    return (json.dumps(document, ensure_ascii=False) for document in documents)


def token_of(line: str) -> str:
    """Returns the resume token in a line, '' if it has none or is not whole."""
    try:
        document = json.loads(line)
    except ValueError:
        return ""
    return str(document.get("resume_token", "")) if isinstance(document, dict) else ""


def records_of(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, pb.Record]]:
    """Yields the records in lines, each with the number of the line with which it begins.

    Raises:
        OperatorError: A line is none of those; the text names it.
    """
    items: list[item_pb2.Item] = []
    size, first = 0, 0
    for number, line in lines:
        found = _parse(number, line)
        if items and (not isinstance(found, item_pb2.Item) or len(items) == _BLOCK_ITEMS or size > _BLOCK_BYTES):
            yield first, pb.Record(items=pb.Record.Items(items=items))
            items, size = [], 0
        if isinstance(found, item_pb2.Item):
            first = first if items else number
            items.append(found)
            size += len(line)
        else:
            yield number, found
    if items:
        yield first, pb.Record(items=pb.Record.Items(items=items))


def _fields_of(message: Any) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


def _item_document(item: item_pb2.Item) -> dict[str, Any]:
    told = item_pb2.Item(create_time=item.create_time, created_by=item.created_by)
    document = {"sequence": item.sequence, **_fields_of(told), "item": to_json(item)}
    if _item(document) != item:
        document["message"] = b64encode(item.SerializeToString(deterministic=True)).decode()
    return document


def _item(document: dict[str, Any]) -> item_pb2.Item | None:
    """Returns the item of a line; None if its JSON cannot be read as one."""
    try:
        item = from_json(json.dumps(document["item"], ensure_ascii=False))
        ParseDict({name: document[name] for name in _SERVER_FIELDS if name in document}, item)
    except (ItemJsonError, ParseError, ValueError):
        return None
    return item


def _parse(number: int, line: str) -> item_pb2.Item | pb.Record:
    try:
        found = _message_of(json.loads(line))
    except (ValueError, NotBase64, DecodeError, ParseError, RecursionError):
        found = None
    if found is None:
        raise OperatorError(f"line {number}: is no head, item or end of an export.")
    return found


def _message_of(document: Any) -> item_pb2.Item | pb.Record | None:
    match document:
        case {"conversation": dict(fields)}:
            return pb.Record(conversation=ParseDict(fields, conversation_pb2.Conversation()))
        case {"end": dict(fields)}:
            return pb.Record(end=ParseDict(fields, pb.Record.End()))
        case {"message": str(text)}:
            return item_pb2.Item.FromString(b64decode(text, validate=True))
        case {"item": dict()}:
            return _item(document)
    return None
