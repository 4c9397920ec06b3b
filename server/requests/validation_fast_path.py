"""A fast path around protovalidate for valid messages. It can go when protovalidate is fast enough.

That is: when `validate` without it costs an append of twenty items less than a tenth
of its CPU time (docs/adr/0002 has the figures: a quarter today, because protovalidate
visits every field, the 29 arms of `Item.body` that are not set included). Delete this
file, its uses in `validation.py` and `tests/requests/test_validation_fast_path.py`.

The checks here are made from the same options and visit only what is set. They may say
"not certain", never "valid" by mistake; protovalidate decides everything they are not
certain of, and words all violations.
"""

import math
import re
import sys
from collections.abc import Callable, Collection, Iterator
from functools import cache
from operator import attrgetter
from typing import Any, TypeAlias

from buf.validate import validate_pb2
from buf.validate.validate_pb2 import FieldRules
from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from server.requests.elements import is_duration

# Returns something true if the value keeps the rules.
Check: TypeAlias = Callable[[Any], object]

_GROUPS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_ENUM: "enum",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
}
_NOT_EMPTY = re.compile(r"this\.(\w+) != ''")  # the one expression of CEL that is known here
_UUID = re.compile("[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# Patterns that mean the same to RE2 and to Python, and that Python matches without
# trying the same text again and again: no alternatives, flags or escapes but \x00,
# and no group that may come twice.
_SET = r"\[\^?(?:(?!--)(?:[A-Za-z0-9_-]|\\x00))+\]"
_PORTABLE = re.compile(rf"\^(?:(?:[A-Za-z0-9_-]|{_SET})(?:[*+?]|\{{\d+(?:,\d+)?\}})?|\(|\)\??)*\$")


class UnknownRule(Exception):
    """A rule that is not implemented here."""


class FastPath:
    """Compiles the check of a message type when its first message arrives.

    A message of a type with an unknown rule is never certain; neither is a message
    that has one of such a type in it.

    Attributes:
        unknown: The first unknown rule of each such type, by its full name.
        inward: The full names of the types with a rule about what is inside of one of their fields.
    """

    def __init__(self) -> None:
        self._checks: dict[Descriptor, Check] = {}
        self.unknown: dict[str, str] = {}
        self.inward: set[str] = set()

    def certainly_valid(self, message: Message) -> bool:
        """Returns True if ``message`` keeps all its rules; False says that only protovalidate knows."""
        descriptor: Any = message.DESCRIPTOR
        return bool(self._check_of(descriptor)(message))

    def _check_of(self, descriptor: Descriptor) -> Check:
        if check := self._checks.get(descriptor):
            return check
        # A type may contain itself: until its check is compiled, parts of it look it up when they run.
        self._checks[descriptor] = self.certainly_valid
        self._checks[descriptor] = check = self._compile(descriptor)
        return check

    def _compile(self, descriptor: Descriptor) -> Check:
        try:
            return _all([*self._parts(descriptor)]) or (lambda _: True)
        except UnknownRule as rule:
            self.unknown[descriptor.full_name] = str(rule)
            return lambda _: False

    def _parts(self, descriptor: Descriptor) -> Iterator[Check]:
        """Yields the checks of a message: of each field, and of each oneof for its arms."""
        if descriptor.GetOptions().HasExtension(validate_pb2.message):
            raise UnknownRule(validate_pb2.message.full_name)
        arms: dict[str, dict[str, Check]] = {oneof.name: {} for oneof in descriptor.oneofs}
        for field in descriptor.fields:
            rules = field.GetOptions().Extensions[validate_pb2.field]
            check = self._field(field, rules)
            if oneof := _oneof_of(field):
                arms[oneof.name] |= {field.name: check} if check else {}
            elif field.has_presence and (check or rules.required):
                yield _present(field.name, check, needed=rules.required)
            elif check:
                zero: object = {} if field.is_repeated else field.default_value
                yield _plain(field.name, check, zero_holds=bool(check(zero)))
        for oneof in descriptor.oneofs:
            needed = _is_required(oneof)
            if needed or arms[oneof.name]:
                yield _choice(oneof.name, arms[oneof.name], needed=needed)

    def _field(self, field: FieldDescriptor, rules: FieldRules) -> Check | None:
        """Returns the check of a field's value; None if there is nothing to check."""
        if field.message_type and field.message_type.GetOptions().map_entry:
            return self._map(field.message_type, rules)
        if field.is_repeated:
            return self._list(field, rules)
        if field.has_presence and not _oneof_of(field):
            return self._value(field, rules, "required")
        if field.type == FieldDescriptor.TYPE_STRING and rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE:
            check = self._value(field, rules, "ignore")
            return check and (lambda text: not text or check(text))
        return self._value(field, rules)

    def _list(self, field: FieldDescriptor, rules: FieldRules) -> Check | None:
        _expect(rules, {"repeated"})
        limits = rules.repeated
        _expect(limits, {"min_items", "max_items", "items"})
        checks = _size(limits.min_items, limits.max_items if limits.HasField("max_items") else sys.maxsize)
        if each := self._value(field, limits.items):
            checks.append(lambda values: all(map(each, values)))
        return _all(checks)

    def _map(self, entry: Descriptor, rules: FieldRules) -> Check | None:
        _expect(rules, {"map"})
        limits = rules.map
        _expect(limits, {"max_pairs", "keys", "values"})
        checks = _size(0, limits.max_pairs if limits.HasField("max_pairs") else sys.maxsize)
        if key := self._value(entry.fields_by_name["key"], limits.keys):
            checks.append(lambda pairs: all(map(key, pairs)))
        if value := self._value(entry.fields_by_name["value"], limits.values):
            checks.append(lambda pairs: all(map(value, pairs.values())))
        return _all(checks)

    def _value(self, field: FieldDescriptor, rules: FieldRules, handled: str = "") -> Check | None:
        """Returns the check of one value: the field's, an element of its list, or a key or value of its map."""
        group = _group_of(field)
        _expect(rules, {group, handled, "cel"})
        checks = [_check(rule, limit, field) for rule, limit in getattr(rules, group).ListFields()] if group else []
        if rules.cel:
            assert field.containing_type
            self.inward.add(field.containing_type.full_name)
            checks += [_expression(each.expression, field) for each in rules.cel]
        if field.message_type and _has_rules(field.message_type):
            checks.append(self._check_of(field.message_type))
        return _all(checks)


_KNOWN: dict[str, Callable[[Any, Any], Check]] = {
    "StringRules.min_len": lambda least, _: lambda text: len(text) >= least,
    "StringRules.max_len": lambda most, _: lambda text: len(text) <= most,
    "StringRules.min_bytes": lambda least, _: lambda text: len(text.encode()) >= least,
    "StringRules.max_bytes": lambda most, _: lambda text: len(text.encode()) <= most,
    "StringRules.pattern": lambda pattern, _: _matcher(pattern),
    "StringRules.uuid": lambda _, __: _UUID.fullmatch,
    "StringRules.in": lambda allowed, _: frozenset(allowed).__contains__,
    "BytesRules.min_len": lambda least, _: lambda value: len(value) >= least,
    "EnumRules.defined_only": lambda _, field: frozenset(field.enum_type.values_by_number).__contains__,
    "EnumRules.not_in": lambda excluded, _: _outside(frozenset(excluded)),
    "DoubleRules.finite": lambda _, __: math.isfinite,
    "Int32Rules.gte": lambda least, _: lambda number: number >= least,
    "Int64Rules.gte": lambda least, _: lambda number: number >= least,
    "DurationRules.gte": lambda least, _: lambda duration: _nanos(duration) >= _nanos(least),
    "DurationRules.lte": lambda most, _: lambda duration: _nanos(duration) <= _nanos(most),
}


def _group_of(field: FieldDescriptor) -> str:
    """Returns the name of the rules for values of a field; '' if there are none."""
    return "duration" if is_duration(field) else _GROUPS.get(field.type, "")


def _nanos(duration: Duration) -> int:
    return duration.seconds * 1_000_000_000 + duration.nanos


def _check(rule: FieldDescriptor, limit: Any, field: FieldDescriptor) -> Check:
    """Returns the check of one rule of one value."""
    make = _KNOWN.get(rule.full_name.removeprefix("buf.validate."))
    if make is None or limit is False:
        raise UnknownRule(rule.full_name)
    return make(limit, field)


def _expression(expression: str, field: FieldDescriptor) -> Check:
    """Returns the check of an expression about a message: that one of its strings is not empty."""
    match = _NOT_EMPTY.fullmatch(expression)
    names = field.message_type.fields_by_name if match and field.message_type else {}
    named = names.get(match[1]) if match else None
    if named is None or named.type != FieldDescriptor.TYPE_STRING or named.is_repeated:
        raise UnknownRule(expression)
    return attrgetter(named.name)


def _matcher(pattern: str) -> Check:
    if not _PORTABLE.fullmatch(pattern):
        raise UnknownRule(pattern)
    # Not `search`: in Python `$` also matches before a final line feed.
    return re.compile(pattern[1:-1]).fullmatch


def _outside(excluded: frozenset[int]) -> Check:
    return lambda number: number not in excluded


def _plain(name: str, holds: Check, *, zero_holds: bool) -> Check:
    """Returns the check of a field without presence: zero or empty if it was not sent."""

    def check(message: Any) -> object:
        value = getattr(message, name)
        return holds(value) if value else zero_holds

    return check


def _present(name: str, holds: Check | None, *, needed: bool) -> Check:
    """Returns the check of a field with presence."""

    def check(message: Any) -> object:
        if not message.HasField(name):
            return not needed
        return holds is None or holds(getattr(message, name))

    return check


def _choice(name: str, arms: dict[str, Check], *, needed: bool) -> Check:
    """Returns the check of a oneof; an arm that is not in ``arms`` has no rules."""

    def check(message: Any) -> object:
        arm = message.WhichOneof(name)
        holds = arms.get(arm)
        if holds is None:
            return arm is not None or not needed
        return holds(getattr(message, arm))

    return check


def _size(least: int, most: int) -> list[Check]:
    return [lambda values: least <= len(values) <= most] if least or most < sys.maxsize else []


def _all(checks: list[Check]) -> Check | None:
    """Returns one check that runs ``checks`` in their order; None if there are none.

    Spelled out because a loop would cost as much as two checks. Rules come in the order
    of their numbers: the length of a text is checked before a pattern meets it.
    """
    match checks:
        case []:
            return None
        case [only]:
            return only
        case [first, second]:
            return lambda value: first(value) and second(value)
        case [first, second, third]:
            return lambda value: first(value) and second(value) and third(value)
    head, tail = _all(checks[:3]), _all(checks[3:])
    assert head
    assert tail
    return lambda value: head(value) and tail(value)


def _oneof_of(field: FieldDescriptor) -> OneofDescriptor | None:
    """Returns the oneof of a field; None also for an ``optional`` one, for which protoc makes one of its own."""
    oneof = field.containing_oneof
    return None if oneof is None or oneof.name == f"_{field.name}" else oneof


def _is_required(oneof: OneofDescriptor) -> bool:
    rules = oneof.GetOptions().Extensions[validate_pb2.oneof]
    _expect(rules, {"required"})
    return rules.required


def _expect(rules: Message, known: Collection[str]) -> None:
    """Raises UnknownRule if ``rules`` has a kind of rule that is not in ``known``."""
    for kind, _ in rules.ListFields():
        if kind.is_extension or kind.name not in known:
            raise UnknownRule(kind.full_name)


@cache
def _has_rules(top: Descriptor) -> bool:
    """Whether the type or one below it declares a rule; if none does, as in free JSON, nothing is visited."""
    ahead = [top]
    for each in ahead:  # grows
        if _is_annotated(each):
            return True
        ahead += {field.message_type for field in each.fields if field.message_type} - set(ahead)
    return False


@cache
def _is_annotated(descriptor: Descriptor) -> bool:
    return (
        descriptor.GetOptions().HasExtension(validate_pb2.message)
        or any(field.GetOptions().HasExtension(validate_pb2.field) for field in descriptor.fields)
        or any(oneof.GetOptions().HasExtension(validate_pb2.oneof) for oneof in descriptor.oneofs)
    )
