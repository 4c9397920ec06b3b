"""Prints conversations and items as tables for people, and as JSON for programs.

Callers choose most of the text. In a table it is escaped, so that it cannot move the cursor or write
over another line; JSON is printed in ASCII for the same reason.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC
from typing import Any

from conversations.v1 import conversation_pb2, item_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from rich.cells import cell_len

from server.items import to_json
from server.observability.escaping import escape_unprintable

_CELL = 64  # characters of a cell in a list
_OWN = frozenset({"id", "type", "role", "status"})  # of an item; they have columns of their own

Row = Sequence[str]


def conversation_table(found: Iterable[conversation_pb2.Conversation]) -> str:
    """Returns a line for each conversation."""
    rows = [
        (
            each.id,
            _time(each.create_time),
            _time(each.update_time),
            each.owner,
            str(each.last_sequence),
            _pairs(each.metadata),
        )
        for each in found
    ]
    return table(("ID", "CREATED", "UPDATED", "OWNER", "LAST", "METADATA"), rows)


def item_table(found: Iterable[item_pb2.Item]) -> str:
    """Returns a line for each item."""
    rows = []
    for each in found:
        body = to_json(each)
        kind = f"{body.get('type', '')} {body.get('role') or ''}".strip()
        rows.append((str(each.sequence), each.id, _time(each.create_time), kind, " ".join(_texts(body).split())))
    return table(("SEQUENCE", "ID", "CREATED", "TYPE", "TEXT"), rows)


def item_page(item: item_pb2.Item) -> str:
    """Returns everything that one item says, each field on lines of its own."""
    body = to_json(item)
    head = {"sequence": str(item.sequence), "created": _time(item.create_time)}
    head |= {name: str(body[name]) for name in ("id", "type", "role", "status") if body.get(name)}
    lines = [f"{name:9} {escape_unprintable(value)}" for name, value in head.items()]
    for name, value in _rest(body).items():
        lines += ["", f"{escape_unprintable(name)}:", *(f"  {line}" for line in _long(value))]
    return "\n".join(lines)


def conversation_json(found: conversation_pb2.Conversation) -> str:
    """Returns a conversation as a line of JSON, with the names of the contract."""
    return json.dumps(MessageToDict(found, preserving_proto_field_name=True))


def item_json(found: item_pb2.Item, indent: int | None = None) -> str:
    """Returns an item as OpenAI JSON, in ASCII."""
    return json.dumps(to_json(found), indent=indent)


def table(header: Row, rows: Sequence[Row]) -> str:
    """Returns rows in columns of equal width; text that a terminal would obey is escaped, and long text is cut."""
    cells = [tuple(_cut(escape_unprintable(cell)) for cell in row) for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(header, *cells, strict=True)]
    lines = (
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        for row in (header, *cells)
    )
    return "\n".join(line.rstrip() for line in lines)


def _cut(text: str) -> str:
    return text if len(text) <= _CELL else f"{text[: _CELL - 1]}…"


def _time(at: Timestamp) -> str:
    return at.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%SZ") if at.seconds else ""


def _pairs(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={found[name]}" for name in sorted(found))


def _rest(body: Mapping[str, Any]) -> dict[str, Any]:
    """What an item says beside its own columns."""
    return {name: value for name, value in body.items() if name not in _OWN and value not in (None, [], {})}


def _texts(body: Mapping[str, Any]) -> str:
    """The text of an item as a person would read it; the JSON of what else it says if it has none."""
    rest = _rest(body)
    return " ".join(_texts_in(rest)) or json.dumps(rest, ensure_ascii=False)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _texts_in(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            if isinstance(each, str) and name in _READ:
                yield each
            else:
                yield from _texts_in(each)


_READ = ("text", "refusal", "arguments", "output", "name", "input", "code", "query", "result")


def _long(value: Any) -> Iterator[str]:
    """The lines of a value: text as it is read, everything else as JSON."""
    if isinstance(value, list) and all(isinstance(each, dict) and isinstance(each.get("text"), str) for each in value):
        for each in value:
            yield f"[{escape_unprintable(str(each.get('type', '')))}]"
            yield from _lines(each["text"])
    else:
        yield from _lines(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2))


def _lines(text: str) -> Iterator[str]:
    return (escape_unprintable(line) for line in text.split("\n"))
