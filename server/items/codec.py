"""Items to and from the JSON of the OpenAI API."""

from collections.abc import Mapping
from typing import cast

from conversations.v1.item_pb2 import Item, ItemReference, NewItem
from conversations.v1.item_status_pb2 import ItemStatus

from server.items.compare import json_equal
from server.items.decode import fill, type_key
from server.items.encode import encode_record, parse_opaque
from server.items.errors import ItemJsonError
from server.items.misfit import ItemMisfit, Misfit, find_misfit, kind_of
from server.items.normalize import normalize, with_empty_lists
from server.items.plain_decode import fill_plain
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
    return decode_document(normalize(parse_document(given)))


def new_item_from_json(given: bytes | str | Mapping[str, object]) -> NewItem:
    """Decodes what is to be appended: an item, or a reference to one.

    An `item_reference` becomes `NewItem.reference` when it has the key `conversation_id`,
    which OpenAI does not have. Without that key it becomes an unknown item.

    Raises:
        ItemJsonError: As for `from_json`, or an id in a reference is not a string.
    """
    document = parse_document(given)
    if not _is_reference(document) or document.get("conversation_id") is None:
        return NewItem(item=decode_document(normalize(document)))
    item_id, conversation_id = (_required_string(document, key) for key in ("id", "conversation_id"))
    return NewItem(reference=ItemReference(item_id=item_id, conversation_id=conversation_id))


def fill_from_client(new: NewItem, document: dict[str, Json]) -> None:
    """Makes an empty ``new`` what a client of the OpenAI API appends; raises as `new_item_from_client`."""
    if not fill_plain(new.item, document):
        new.CopyFrom(new_item_from_client(document))


def new_item_from_client(document: dict[str, Json]) -> NewItem:
    """Decodes what a client of the OpenAI API appends; strict about kinds, which `new_item_from_json` is not.

    A reference without `conversation_id` becomes a `NewItem.reference` without one: it has to be found first.

    Args:
        document: An object that `check` has passed.

    Raises:
        RoleMissing: A message without a role.
        ItemMisfit: A key that the schema knows has another kind of JSON, or one that it always shows is absent.
    """
    if _is_reference(document):
        return _reference_from_client(document)
    if document.get("type") is None and document.get("role") is None:
        raise ItemMisfit(Misfit("type", "a string", ""))
    normalized = normalize(document)
    if misfit := find_misfit(normalized):
        raise ItemMisfit(misfit)
    return NewItem(item=decode_document(with_empty_lists(normalized)))


def _reference_from_client(document: dict[str, Json]) -> NewItem:
    reference = ItemReference()
    for key, name in (("id", "item_id"), ("conversation_id", "conversation_id")):
        value = document.get(key)
        if isinstance(value, str):
            setattr(reference, name, value)
        elif value is not None or key == "id":
            raise ItemMisfit(Misfit(key, "a string", kind_of(value) if key in document else ""))
    return NewItem(reference=reference)


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


def parse_document(given: bytes | str | Mapping[str, object]) -> dict[str, Json]:
    """Parses JSON text, or takes parsed JSON, and checks that it is an object that can be stored.

    Raises:
        ItemJsonError: It is not.
    """
    document = loads(given) if isinstance(given, bytes | str) else dict(given)
    if not isinstance(document, dict):
        raise ItemJsonError("is not a JSON object")
    check(document)
    return cast("dict[str, Json]", document)


def decode_document(document: dict[str, Json]) -> Item:
    """Decodes a checked and normalized item."""
    item, name = Item(status=decode_status(document)), type_key(document)
    if isinstance(item_id := document.get("id"), str):
        item.id = item_id
    if name in body_shapes():
        _fill_body(item, name, document)
    else:
        item.unknown.type, item.unknown.json = unknown_type(document), dumps(document)
    return item


def unknown_type(document: dict[str, Json]) -> str:
    """The `type` of an item without a typed body; an item with an id and no type is a reference."""
    return "item_reference" if _is_reference(document) else type_key(document)


def decode_status(document: dict[str, Json]) -> ItemStatus.ValueType:
    """The status in the JSON of an item; unspecified where this build or the item's type has no such status."""
    name, status = type_key(document), document.get("status")
    if not isinstance(status, str) or (name in body_shapes() and not has_status(name)):
        return ItemStatus.ITEM_STATUS_UNSPECIFIED
    return ItemStatus.ValueType(_STATUSES.get(status, 0))


def _is_reference(document: dict[str, Json]) -> bool:
    name = document.get("type")
    bare = name is None and document.get("role") is None and document.get("id") is not None
    return bare or name == "item_reference"


def _required_string(document: dict[str, Json], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str):
        raise ItemJsonError("is not a string", key)
    return value


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
