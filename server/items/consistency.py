"""Checks that an item sent by a caller says one thing in all its representations.

JSON travels as text inside an item, where neither protobuf nor the rules of the contract
look at it. Items made by `codec` pass these checks.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from conversations.v1.content_pb2 import Opaque
from conversations.v1.item_pb2 import Item

from server.items.codec import decode_document, decode_status, parse_document, unknown_type
from server.items.decode import type_key
from server.items.encode import parse_opaque
from server.items.errors import ItemJsonError
from server.items.normalize import normalize
from server.items.shape import Cardinality, Field, Form, Shape, body_shapes
from server.items.text import Json

# A part of an unknown kind is always field 15, so that a serialized item without this byte has no such part.
PART_TAG = bytes([15 << 3 | 2])

_Check: TypeAlias = Callable[[Any], None]
_T = TypeVar("_T")
_R = TypeVar("_R")


def check_item(item: Item) -> None:
    """Checks the JSON in ``item`` against the other fields of ``item``.

    The keys `id` and `status` are compared where the JSON has them. Keys with the names of
    the server's own fields, such as `sequence`, belong to OpenAI and are not compared.

    Raises:
        ItemJsonError: JSON that is not valid, has a key twice in one object, or contradicts
            the item. The path begins at the item, as in `message.content[0].unknown.json`.
    """
    arm = item.WhichOneof("body") or ""
    if item.json:
        _at("json", _check_json, item)
    elif arm == "unknown":
        _at("unknown", _check_unknown, item)
    elif check := _BODY_CHECKS.get(arm):
        _at(arm, check, getattr(item, arm))


def has_own_status(item: Item) -> bool:
    """Whether `Item.json`, which must be set, has a status; False for JSON that `check_item` refuses."""
    try:
        return parse_document(item.json).get("status") is not None
    except ItemJsonError:
        return False


def _check_json(item: Item) -> None:
    document = parse_document(item.json)
    twin = decode_document(normalize(document))
    if twin.WhichOneof("body") != item.WhichOneof("body") or _body(twin) != _body(item):
        raise ItemJsonError("is not the JSON of the item's body")
    _check_id_and_status(item, document)


def _check_unknown(item: Item) -> None:
    _at("json", _check_unknown_json, item)


def _check_unknown_json(item: Item) -> None:
    document = parse_document(item.unknown.json)
    type_ = unknown_type(normalize(document))
    if type_ in body_shapes() or type_ != item.unknown.type:
        raise ItemJsonError("is not the type of the item", "type")
    _check_id_and_status(item, document)


def _check_id_and_status(item: Item, document: dict[str, Json]) -> None:
    if document.get("id") not in (None, item.id):
        raise ItemJsonError("is not the id of the item", "id")
    if document.get("status") is not None and decode_status(document) != item.status:
        raise ItemJsonError("is not the status of the item", "status")


def _check_part(part: Opaque) -> None:
    _at("json", _check_part_json, part)


def _check_part_json(part: Opaque) -> None:
    if type_key(parse_opaque(part.json)) != part.type:
        raise ItemJsonError("is not the type of the part", "type")


def _body(item: Item) -> object:
    return getattr(item, item.WhichOneof("body") or "unknown")


# The rest finds the parts of unknown kind in typed bodies. Most fields of most types cannot
# hold one, and get no check.


def _shape_check(shape: Shape) -> _Check | None:
    if shape.form is Form.OPAQUE:
        return _check_part
    checks = {field.name: check for field in shape.fields.values() if (check := _field_check(field))}
    if not checks:
        return None
    return _union_check(shape.oneof, checks) if shape.form is Form.UNION else _record_check(shape, checks)


def _field_check(field: Field) -> _Check | None:
    check = _shape_check(field.shape) if field.shape else None
    if check is None:
        return None
    match field.cardinality:
        case Cardinality.SINGULAR:
            return check
        case Cardinality.REPEATED:
            return _each_check(check, enumerate)
        case Cardinality.MAP:
            return _each_check(check, lambda pairs: pairs.items())


def _each_check(check: _Check, steps: Callable[[Any], Iterable[tuple[str | int, Any]]]) -> _Check:
    def check_each(values: Any) -> None:
        for step, value in steps(values):
            try:
                check(value)
            except ItemJsonError as error:
                raise error.inside(step) from None

    return check_each


def _union_check(oneof: str, checks: Mapping[str, _Check]) -> _Check:
    def check_union(message: Any) -> None:
        arm = message.WhichOneof(oneof)
        if arm in checks:
            _at(arm, checks[arm], getattr(message, arm))

    return check_union


def _record_check(shape: Shape, checks: Mapping[str, _Check]) -> _Check:
    fields = [(name, shape.fields[name].has_presence, check) for name, check in checks.items()]

    def check_record(message: Any) -> None:
        for name, has_presence, check in fields:
            if not has_presence or message.HasField(name):
                try:
                    check(getattr(message, name))
                except ItemJsonError as error:
                    raise error.inside(name) from None

    return check_record


def _at(path: str, check: Callable[[_T], _R], value: _T) -> _R:
    """``check(value)``, with ``path`` put in front of the path of an error."""
    try:
        return check(value)
    except ItemJsonError as error:
        raise error.inside(path) from None


_BODY_CHECKS = {arm: check for arm, shape in body_shapes().items() if (check := _shape_check(shape))}
