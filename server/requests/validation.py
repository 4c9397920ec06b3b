"""Validation: the rules that the contract declares by protovalidate's options, with bounded work.

protovalidate visits every element of a request and makes an object of every violation, which takes it
seconds for a request of some hundred kilobytes. So it gets a request as it is only when that has few elements.
Of any other it gets the first message that breaks a rule, without what is inside of that message, and with no
more of its lists than it takes to break a limit.
"""

from itertools import islice
from typing import Any

from buf.validate import validate_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from protovalidate import Validator
from protovalidate import Violation as ProtovalidateViolation

from server.errors import FieldInvalid, Violation
from server.requests.elements import children, has_at_most, is_duration, is_map, quoted
from server.requests.validation_fast_path import FastPath

FEW_ELEMENTS = 200  # of lists and maps; 3 ms of protovalidate at most

_validator = Validator()
_fast_path = FastPath()
certainly_valid = _fast_path.certainly_valid


def validate(request: Message) -> None:
    """Checks every rule that the contract declares.

    Raises:
        FieldInvalid: With every rule that ``request`` breaks, if it has few elements; otherwise with those that
            its first invalid message breaks.
    """
    if certainly_valid(request):
        return
    if has_at_most(FEW_ELEMENTS, request):
        violations = [_violation(each) for each in _validator.collect_violations(request)]
    else:
        violations = _first_violations(request)
    if violations:
        raise FieldInvalid(*violations)


def _first_violations(request: Message) -> list[Violation]:
    """Returns the violations of the first invalid message in ``request``; none if it is valid after all."""
    path, message = _first_invalid(request)
    violations = []
    if message.DESCRIPTOR.full_name not in _fast_path.unknown.keys() | _fast_path.inward:
        own = _validator.collect_violations(_withoutchildren(message))
        violations = [_violation(each, path) for each in own if _depth(each) <= 1]
    return violations or [_violation(each) for each in _validator.collect_violations(request, fail_fast=True)]


def _depth(violation: ProtovalidateViolation) -> int:
    return len(violation.proto.field.elements) if violation.proto.field else 0


def _first_invalid(message: Message) -> tuple[str, Message]:
    """Returns the path and the message that breaks a rule itself, and not only in its children."""
    path = ""
    while not _exceeds_limit(message):
        invalid = (
            (f".{field.name}{key}", child)
            for field, value in message.ListFields()
            for key, child in children(field, value)
            if not certainly_valid(child)
        )
        step, child = next(invalid, ("", None))
        if child is None:
            break
        path, message = path + step, child
    return path, message


def _exceeds_limit(message: Message) -> bool:
    fields = ((field, value) for field, value in message.ListFields() if field.is_repeated)
    return any(0 < _limit(field) < len(value) for field, value in fields)


def _limit(field: FieldDescriptor) -> int:
    """Returns how many elements the contract allows in a list or map; 0 if it sets no limit."""
    rules = field.GetOptions().Extensions[validate_pb2.field]
    return rules.map.max_pairs or rules.repeated.max_items


def _withoutchildren(message: Message) -> Message:
    """Returns a copy with empty messages in place of its children.

    Of each list there is one element more than its limit; of a list without a limit, one.
    """
    shell = type(message)()
    for field, value in message.ListFields():
        name = field.name
        most = _limit(field) + 1
        copy = getattr(shell, name)
        if is_map(field):
            for key in islice(value, most):
                _copy_pair(copy, key, value)
        elif field.is_repeated and field.message_type:
            copy.extend(type(each)() for each in value[:most])
        elif field.is_repeated:
            copy.extend(value[:most])
        elif is_duration(field):
            copy.CopyFrom(value)
        elif field.message_type:
            copy.SetInParent()
        else:
            setattr(shell, name, value)
    return shell


def _copy_pair(copy: Any, key: Any, pairs: Any) -> None:
    if isinstance(pairs[key], Message):
        copy.get_or_create(key)
    else:
        copy[key] = pairs[key]


def _violation(violation: ProtovalidateViolation, path: str = "") -> Violation:
    """Returns a violation in our words; ``path`` leads to the message that was validated."""
    proto = violation.proto
    elements = proto.field.elements if proto.field else ()
    path += "".join(_step(element) for element in elements)
    return Violation(path.removeprefix("."), proto.message, proto.rule_id)


def _step(element: object) -> str:
    """Returns one step of a field path, as in ``items[0]`` or ``metadata["key"]``."""
    name, subscript = getattr(element, "field_name", ""), getattr(element, "subscript", None)
    return f".{name}" if subscript is None else f".{name}[{quoted(subscript.value)}]"
