"""Validation: the rules that the contract declares by protovalidate's options."""

from google.protobuf.message import Message
from protovalidate import Validator
from protovalidate import Violation as ProtovalidateViolation

from server.errors import FieldInvalid, Violation
from server.requests.validation_fast_path import certainly_valid

_validator = Validator()


def validate(request: Message) -> None:
    """Checks every rule that the contract declares.

    Raises:
        FieldInvalid: With every rule that ``request`` breaks.
    """
    if certainly_valid(request):
        return
    violations = _validator.collect_violations(request)
    if violations:
        raise FieldInvalid(*(_violation(each) for each in violations))


def _violation(violation: ProtovalidateViolation) -> Violation:
    proto = violation.proto
    elements = proto.field.elements if proto.field else ()
    path = "".join(_step(element) for element in elements).removeprefix(".")
    return Violation(path, proto.message, proto.rule_id)


def _step(element: object) -> str:
    """Returns one step of a field path, as in ``items[0]`` or ``metadata["key"]``."""
    name, subscript = getattr(element, "field_name", ""), getattr(element, "subscript", None)
    if subscript is None:
        return f".{name}"
    value = subscript.value
    return f'.{name}["{value}"]' if isinstance(value, str) else f".{name}[{value}]"
