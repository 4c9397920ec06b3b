"""The rules of the contract, enforced: protovalidate's, all violations at once."""

from google.protobuf.message import Message
from protovalidate import Validator
from protovalidate import Violation as Broken

from server.errors import FieldInvalid, Violation
from server.requests.validation_fast_path import certainly_valid

_validator = Validator()


def validate(request: Message) -> None:
    """Raises FieldInvalid with every rule of the contract that ``request`` breaks."""
    if certainly_valid(request):
        return
    broken = _validator.collect_violations(request)
    if broken:
        raise FieldInvalid(*(_violation(each) for each in broken))


def _violation(broken: Broken) -> Violation:
    proto = broken.proto
    elements = proto.field.elements if proto.field else ()
    path = "".join(_step(element) for element in elements).removeprefix(".")
    return Violation(path, proto.message, proto.rule_id)


def _step(element: object) -> str:
    """One step of a field path, as in ``items[0]`` or ``metadata["key"]``."""
    name, subscript = getattr(element, "field_name", ""), getattr(element, "subscript", None)
    if subscript is None:
        return f".{name}"
    value = subscript.value
    return f'.{name}["{value}"]' if isinstance(value, str) else f".{name}[{value}]"
