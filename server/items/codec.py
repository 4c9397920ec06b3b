"""Items to and from the JSON of the OpenAI API."""

from collections.abc import Mapping
from typing import cast

from conversations.v1.item_pb2 import Item, ItemReference, NewItem
from conversations.v1.item_status_pb2 import ItemStatus

from server.items.compare import json_equal
from server.items.decode import fill, fill_opaque
from server.items.encode import encode_record, parse_opaque
from server.items.errors import ItemJsonError
from server.items.names import item_type
from server.items.normalize import normalize
from server.items.shape import body_shapes, enum_names, has_status
from server.items.text import Json, check, dumps, loads

_STATUS_NAMES = enum_names(ItemStatus.DESCRIPTOR)
_STATUSES = {name: number for number, name in _STATUS_NAMES.items()}


def from_json(given: bytes | str | Mapping[str, object]) -> Item:
    """Decodes an OpenAI item, in the form that the OpenAI API stores.

    `Item.json` is set only where encoding the typed body would not give the same JSON back.

    Raises:
        ItemJsonError: Not a JSON object, a message without a role, or JSON that cannot be
            stored: lone surrogates, NaN, nesting beyond 100.
    """
    return _decode_item(normalize(_parse_object(given)))


def new_item_from_json(given: bytes | str | Mapping[str, object]) -> NewItem:
    """Decodes what is to be appended: an item, or a reference to one.

    An `item_reference` becomes `NewItem.reference` when it has the key `conversation_id`,
    which OpenAI does not have. Without that key it becomes an unknown item.

    Raises:
        ItemJsonError: As for `from_json`, or an id in a reference is not a string.
    """
    document = _parse_object(given)
    if not _is_reference(document) or document.get("conversation_id") is None:
        return NewItem(item=_decode_item(normalize(document)))
    item_id, conversation_id = (_required_string(document, key) for key in ("id", "conversation_id"))
    return NewItem(reference=ItemReference(item_id=item_id, conversation_id=conversation_id))


def to_json(item: Item) -> dict[str, Json]:
    """Encodes the item as OpenAI JSON, with `type`, `id` and `status` first.

    Raises:
        ItemJsonError: `Item.json` or an unknown part is not JSON. `check_item` refuses such
            items before they are stored.
    """
    if item.json:
        return _with_server_fields(item, parse_opaque(item.json))
    name = item.WhichOneof("body")
    if name == "unknown":
        return _with_server_fields(item, parse_opaque(item.unknown.json))
    return _encode_typed(item, name)


def check_item(item: Item) -> None:
    """Checks that the JSON and the body of a caller's item agree.

    Otherwise readers of the JSON would see another item than filters and readers of the body.

    Raises:
        ItemJsonError: They differ, or a part that should be JSON is not.
    """
    shown = to_json(item)
    twin = from_json(cast("Mapping[str, object]", shown))
    one_type = twin.WhichOneof("body") == item.WhichOneof("body") and item_type(twin) == item_type(item)
    if not one_type or (item.json and _body_of(twin) != _body_of(item)):
        raise ItemJsonError("is not the JSON of its body")


def _is_reference(document: Mapping[str, object]) -> bool:
    """Whether a JSON object is an `item_reference`, whose `type` may be left out."""
    name = document.get("type")
    bare = name is None and document.get("role") is None and document.get("id") is not None
    return bare or name == "item_reference"


def _parse_object(given: bytes | str | Mapping[str, object]) -> dict[str, Json]:
    document = loads(given) if isinstance(given, bytes | str) else dict(given)
    if not isinstance(document, dict):
        raise ItemJsonError("is not a JSON object")
    check(document)
    return cast("dict[str, Json]", document)


def _required_string(document: dict[str, Json], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str):
        raise ItemJsonError("is not a string", key)
    return value


def _decode_item(document: dict[str, Json]) -> Item:
    item, name = Item(), document.get("type")
    if isinstance(item_id := document.get("id"), str):
        item.id = item_id
    known = isinstance(name, str) and name in body_shapes()
    if isinstance(status := document.get("status"), str) and (not known or has_status(str(name))):
        item.status = ItemStatus.ValueType(_STATUSES.get(status, 0))
    if known:
        _fill_body(item, str(name), document)
    else:
        fill_opaque(item.unknown, document, "item_reference" if _is_reference(document) else "")
    return item


def _fill_body(item: Item, name: str, document: dict[str, Json]) -> None:
    body = getattr(item, name)
    body.SetInParent()
    fill(body_shapes()[name], body, document)
    if not json_equal(document, _encode_typed(item, name)):
        item.json = dumps(document)


def _encode_typed(item: Item, name: str | None) -> dict[str, Json]:
    head: dict[str, Json] = {"type": name} if name else {}
    if item.id:
        head["id"] = item.id
    if status := _STATUS_NAMES.get(item.status):
        head["status"] = status
    return {**head, **encode_record(body_shapes()[name], getattr(item, name))} if name else head


def _with_server_fields(item: Item, document: Json) -> dict[str, Json]:
    """``document`` with the id and status that the server has assigned to the item."""
    if not isinstance(document, dict):
        raise ItemJsonError("is not a JSON object")
    server: dict[str, Json] = {"id": item.id} if item.id else {}
    if document.get("status") is None and item.status in _STATUS_NAMES:
        server["status"] = _STATUS_NAMES[item.status]
    whole = {**document, **server}
    head: dict[str, Json] = {key: whole[key] for key in ("type", "id", "status") if key in whole}
    return {**head, **whole}


def _body_of(item: Item) -> object:
    return getattr(item, item.WhichOneof("body") or "unknown")
