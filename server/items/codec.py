"""Items from and to the JSON of the OpenAI API."""

from collections.abc import Mapping
from typing import cast

from conversations.v1.item_pb2 import Item, ItemReference, NewItem
from conversations.v1.item_status_pb2 import ItemStatus

from .compare import same
from .decode import fill, fill_opaque
from .encode import show_opaque, show_record
from .errors import ItemJsonError
from .names import item_type
from .normal import normal
from .shape import bodies, enum_names, has_status
from .text import Json, check, dumps, loads

_STATUS_NAMES = enum_names(ItemStatus.DESCRIPTOR)
_STATUSES = {name: number for number, name in _STATUS_NAMES.items()}


def from_json(given: bytes | str | Mapping[str, object]) -> Item:
    """The item that a JSON object stands for, in the form the OpenAI API stores.

    `Item.json` is set when the typed body alone would not give the same JSON back.

    Raises:
        ItemJsonError: No JSON object, a message without a role, or JSON that can not
            be stored: lone surrogates, NaN, nesting beyond 100.
    """
    return _item(normal(_object(given)))


def new_item_from_json(given: bytes | str | Mapping[str, object]) -> NewItem:
    """Like `from_json`, for what is appended: an item or a reference to one.

    A reference becomes `NewItem.reference` when it has the key `conversation_id`, which
    is not OpenAI's; without it, it stays an unknown item of type `item_reference`.

    Raises:
        ItemJsonError: As for `from_json`, or an id in a reference is no string.
    """
    document = _object(given)
    if not is_reference(document) or document.get("conversation_id") is None:
        return NewItem(item=_item(normal(document)))
    item_id, conversation_id = (_id(document, key) for key in ("id", "conversation_id"))
    return NewItem(reference=ItemReference(item_id=item_id, conversation_id=conversation_id))


def to_json(item: Item) -> dict[str, Json]:
    """The item as OpenAI JSON: `type`, `id` and `status` first.

    Raises:
        ItemJsonError: `Item.json` or an unknown part holds no JSON; `check_item` refuses
            such items before they are stored.
    """
    if item.json:
        return _overlaid(item, show_opaque(item.json))
    name = item.WhichOneof("body")
    if name == "unknown":
        return _overlaid(item, show_opaque(item.unknown.json))
    return _typed(item, name)


def check_item(item: Item) -> None:
    """Refuses an item, not made here, whose JSON and body do not say the same.

    Else a reader of the JSON and a policy on the body would see two different items.

    Raises:
        ItemJsonError: They differ, or a part that should be JSON is none.
    """
    shown = to_json(item)
    twin = from_json(cast("Mapping[str, object]", shown))
    one_type = twin.WhichOneof("body") == item.WhichOneof("body") and item_type(twin) == item_type(item)
    if not one_type or (item.json and _body(twin) != _body(item)):
        raise ItemJsonError("is not the JSON of its body")


def is_reference(document: Mapping[str, object]) -> bool:
    """Whether a JSON object is an `item_reference`; its type may be left out."""
    name = document.get("type")
    bare = name is None and document.get("role") is None and document.get("id") is not None
    return bare or name == "item_reference"


def _object(given: bytes | str | Mapping[str, object]) -> dict[str, Json]:
    document = loads(given) if isinstance(given, bytes | str) else dict(given)
    if not isinstance(document, dict):
        raise ItemJsonError("is not a JSON object")
    check(document)
    return cast("dict[str, Json]", document)


def _id(document: dict[str, Json], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str):
        raise ItemJsonError("is not a string", key)
    return value


def _item(document: dict[str, Json]) -> Item:
    item, name = Item(), document.get("type")
    if isinstance(item_id := document.get("id"), str):
        item.id = item_id
    known = isinstance(name, str) and name in bodies()
    if isinstance(status := document.get("status"), str) and (not known or has_status(str(name))):
        item.status = ItemStatus.ValueType(_STATUSES.get(status, 0))
    if known:
        _fill_body(item, str(name), document)
    else:
        fill_opaque(item.unknown, document, "item_reference" if is_reference(document) else "")
    return item


def _fill_body(item: Item, name: str, document: dict[str, Json]) -> None:
    body = getattr(item, name)
    body.SetInParent()
    fill(bodies()[name], body, document)
    if not same(document, _typed(item, name)):
        item.json = dumps(document)


def _typed(item: Item, name: str | None) -> dict[str, Json]:
    head: dict[str, Json] = {"type": name} if name else {}
    if item.id:
        head["id"] = item.id
    if status := _STATUS_NAMES.get(item.status):
        head["status"] = status
    return {**head, **show_record(bodies()[name], getattr(item, name))} if name else head


def _overlaid(item: Item, document: Json) -> dict[str, Json]:
    """``document`` with what the server has assigned since."""
    if not isinstance(document, dict):
        raise ItemJsonError("is not a JSON object")
    server: dict[str, Json] = {"id": item.id} if item.id else {}
    if document.get("status") is None and item.status in _STATUS_NAMES:
        server["status"] = _STATUS_NAMES[item.status]
    whole = {**document, **server}
    head: dict[str, Json] = {key: whole[key] for key in ("type", "id", "status") if key in whole}
    return {**head, **whole}


def _body(item: Item) -> object:
    return getattr(item, item.WhichOneof("body") or "unknown")
