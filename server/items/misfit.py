"""Where the JSON of an item is not of the kinds that its type's schema says.

`decode` keeps such JSON aside and never fails, so that nothing is lost between versions. A caller that speaks JSON
reads items with classes made from the schema, and those fail for text where a list should be. What a schema may get
more of is no misfit: unknown item types, keys, values of enums, and parts of unions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from google.protobuf.descriptor import FieldDescriptor

from server.items.decode import takes_null
from server.items.errors import ItemJsonError
from server.items.normalize import EMPTY_IF_ABSENT
from server.items.shape import Cardinality, Field, Form, Shape, body_shapes
from server.items.text import Json

_KINDS: dict[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    list: "an array",
    dict: "an object",
    type(None): "null",
}
_TEXT, _LIST, _OBJECT = _KINDS[str], _KINDS[list], _KINDS[dict]


@dataclass(frozen=True, slots=True)
class Misfit:
    """One value of the wrong kind, or none where the schema always shows one.

    Attributes:
        path: From the item, as in `content[0].text`.
        expected: A kind of JSON with its article, such as `a string`.
        given: Likewise; '' if the key is absent.
    """

    path: str
    expected: str
    given: str

    def inside(self, step: str) -> "Misfit":
        """Returns the same misfit seen from outside of ``step``, a key or an index in brackets."""
        joint = "" if not self.path or self.path.startswith("[") else "."
        return Misfit(f"{step}{joint}{self.path}", self.expected, self.given)


class ItemMisfit(ItemJsonError):
    """JSON that its type's schema cannot take without losing it."""

    def __init__(self, misfit: Misfit) -> None:
        super().__init__(f"must be {misfit.expected}", misfit.path)
        self.misfit = misfit


_Check: TypeAlias = Callable[[Json], Misfit | None]


def find_misfit(item: dict[str, Json]) -> Misfit | None:
    """Returns the first misfit of an item as `normalize` returns it; None if there is none."""
    check = _BODIES.get(str(item.get("type")))
    for key in ("type", "id", "status") if check else ("type", "id"):
        if item.get(key) is not None and not isinstance(item[key], str):
            return Misfit(key, _TEXT, kind_of(item[key]))
    return check(item) if check else None


def kind_of(value: object) -> str:
    """Returns the kind of a JSON value with its article."""
    return _KINDS[type(value)]


def _wrong(expected: str, given: Json) -> Misfit:
    return Misfit("", expected, kind_of(given))


def _is_kind(kind: type | tuple[type, ...], expected: str) -> _Check:
    def check(given: Json) -> Misfit | None:
        if isinstance(given, bool) and kind is not bool:
            return _wrong(expected, given)
        return None if isinstance(given, kind) else _wrong(expected, given)

    return check


_SCALARS: dict[int, _Check] = {
    FieldDescriptor.CPPTYPE_STRING: _is_kind(str, _TEXT),
    FieldDescriptor.CPPTYPE_ENUM: _is_kind(str, _TEXT),
    FieldDescriptor.CPPTYPE_BOOL: _is_kind(bool, _KINDS[bool]),
    FieldDescriptor.CPPTYPE_DOUBLE: _is_kind((int, float), _KINDS[float]),
    FieldDescriptor.CPPTYPE_INT32: _is_kind(int, _KINDS[int]),
    FieldDescriptor.CPPTYPE_INT64: _is_kind(int, _KINDS[int]),
}


def _any(_given: Json) -> None:
    return None


def _shape_check(shape: Shape) -> _Check:
    match shape.form:
        case Form.RECORD:
            return _record_check(shape)
        case Form.UNION:
            return _union_check(shape)
        case Form.INLINE:
            return _field_check(next(iter(shape.fields.values())))
        case Form.FREE_OBJECT:
            return _is_kind(dict, _OBJECT)
        case Form.FREE | Form.OPAQUE:
            return _any


def _field_check(field: Field) -> _Check:
    one = _shape_check(field.shape) if field.shape else _SCALARS[field.cpp_type]
    if field.type_key:
        one = _typed_check(one)
    match field.cardinality:
        case Cardinality.SINGULAR:
            return one
        case Cardinality.REPEATED:
            return _list_check(one)
        case Cardinality.MAP:
            return _map_check(one)


def _type_misfit(given: dict[str, Json]) -> Misfit | None:
    """Returns what is wrong with the `type` of an object that must have one, of whatever kind."""
    if "type" not in given:
        return Misfit("type", _TEXT, "")
    return None if isinstance(given["type"], str) else Misfit("type", _TEXT, kind_of(given["type"]))


def _typed_check(one: _Check) -> _Check:
    def check(given: Json) -> Misfit | None:
        return one(given) or (_type_misfit(given) if isinstance(given, dict) else None)

    return check


def _list_check(one: _Check) -> _Check:
    def check(given: Json) -> Misfit | None:
        if not isinstance(given, list):
            return _wrong(_LIST, given)
        for index, each in enumerate(given):
            if misfit := one(each):
                return misfit.inside(f"[{index}]")
        return None

    return check


def _map_check(one: _Check) -> _Check:
    def check(given: Json) -> Misfit | None:
        if not isinstance(given, dict):
            return _wrong(_OBJECT, given)
        for key, each in given.items():
            if misfit := one(each):
                return misfit.inside(key)
        return None

    return check


def _record_check(shape: Shape) -> _Check:
    """Returns the check of an object with a key for each field; null stands for an absent key."""
    checks = {field.name: (_field_check(field), takes_null(field)) for field in shape.fields.values()}
    always = [(field.name, _expected(field)) for field in shape.fields.values() if is_always_shown(field)]

    def check(given: Json) -> Misfit | None:
        if not isinstance(given, dict):
            return _wrong(_OBJECT, given)
        for key, value in given.items():
            known = checks.get(key)
            if known and (value is not None or known[1]) and (misfit := known[0](value)):
                return misfit.inside(key)
        for key, expected in always:
            if given.get(key) is None:
                return Misfit(key, expected, kind_of(None) if key in given else "")
        return None

    return check


def is_always_shown(field: Field) -> bool:
    """Whether every item that is read has the key, with a value that the caller has to have sent."""
    is_enum = field.cpp_type == FieldDescriptor.CPPTYPE_ENUM
    return not (field.has_presence or field.null_when_unset or is_enum or field.name in EMPTY_IF_ABSENT)


def _expected(field: Field) -> str:
    match field.cardinality:
        case Cardinality.REPEATED:
            return _LIST
        case Cardinality.MAP:
            return _OBJECT
    misfit = _SCALARS[field.cpp_type](None)
    assert misfit
    return misfit.expected


def _union_check(shape: Shape) -> _Check:
    """Returns the check of one of several forms; an object of a type that the schema does not have always fits."""
    objects = {name: _field_check(field) for name, field in shape.by_type_key.items()}
    others = {kind: _field_check(field) for kind, field in shape.by_json_type.items()}
    kinds = [_KINDS[kind] for kind in others if kind is not int] + [_OBJECT] * bool(objects)
    expected = kinds[0] if len(kinds) == 1 else f"one of {', '.join(kinds[:-1])} or {kinds[-1]}"

    def check(given: Json) -> Misfit | None:
        if not isinstance(given, dict) or not objects:
            arm = others.get(type(given))
            return arm(given) if arm else _wrong(expected, given)
        if misfit := _type_misfit(given):
            return misfit
        arm = objects.get(str(given["type"]))
        return arm(given) if arm else None

    return check


_BODIES = {name: _shape_check(shape) for name, shape in body_shapes().items()}
