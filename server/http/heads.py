"""The query and the headers of a request over HTTP."""

import re
from collections.abc import Collection, Mapping
from urllib.parse import parse_qsl
from uuid import UUID, uuid5

from conversations.v1 import conversations_service_pb2 as pb

from server.http.problems import RequestInvalid, clip, invalid, invalid_type
from server.requests.page_tokens import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE

MAX_KEY_CHARACTERS = 255  # of Idempotency-Key
_INCLUDE = ("include", "include[]")  # as SDKs spell it, and as it is written by hand
INCLUDES = frozenset(
    (
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "message.output_text.logprobs",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
        "web_search_call.results",
    )
)
ORDERS = {"asc": pb.ORDER_ASCENDING, "desc": pb.ORDER_DESCENDING}
TIME_ORDERS = {"asc": "create_time", "desc": "create_time desc"}
_KEYS_NAMESPACE = UUID("7d1f6d52-5b1f-4d5c-9d60-6c0c3f6a2f0e")  # of the UUIDs that stand for other keys
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
_VISIBLE = re.compile(rf"[!-~]{{1,{MAX_KEY_CHARACTERS}}}", re.ASCII)
_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_ETAG_CHARACTERS = 32
_NO_ETAG = '"0"'  # which no conversation has


def read_query(text: str, known: Collection[str]) -> dict[str, str]:
    """Returns the parameters of a query by their names; not `include`, for items are always whole.

    Args:
        text: The query as it came.
        known: The parameters that the route has.

    Raises:
        RequestInvalid: A parameter is not known, comes twice, or is not one of its values.
    """
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=100, errors="replace")
    except ValueError:
        raise invalid("Invalid query: it has too many parameters.", "invalid_value") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in _INCLUDE and "include" in known:
            _one_of(INCLUDES, "include", value)
        elif name not in known:
            raise unknown_parameter(name)
        elif name in found:
            raise invalid(f"Duplicate parameter: '{name}'.", "invalid_value", name)
        else:
            found[name] = value
    return found


def request_id_of(key: str | None) -> str:
    """Returns the `request_id` that an `Idempotency-Key` stands for; '' without one.

    A UUID is the id itself, so that a write can be repeated over the other protocol.

    Raises:
        RequestInvalid: It is no key.
    """
    if key is None:
        return ""
    if _UUID.fullmatch(key):
        return key.lower()
    if not _VISIBLE.fullmatch(key):
        message = f"Invalid 'Idempotency-Key': must have 1 to {MAX_KEY_CHARACTERS} visible ASCII characters."
        raise invalid(message, "invalid_value", "Idempotency-Key")
    return str(uuid5(_KEYS_NAMESPACE, key))


def etag_of(if_match: str) -> str:
    """Returns the etag that a conversation must have; '' if it may have any."""
    if if_match == "*":
        return ""
    return if_match if len(if_match) <= _ETAG_CHARACTERS else _NO_ETAG


def order_of(query: Mapping[str, str]) -> str:
    """Returns the order of a list, a key of `ORDERS`.

    Raises:
        RequestInvalid: There is no such order.
    """
    return _one_of(ORDERS, "order", query.get("order", "desc"))


def page_size_of(query: Mapping[str, str]) -> int:
    """Returns the most objects of a page.

    Raises:
        RequestInvalid: It is not a number from 1 to 100.
    """
    text = query.get("limit")
    if text is None:
        return DEFAULT_PAGE_SIZE
    if not _INTEGER.fullmatch(text):
        raise invalid_type("limit", "an integer", "a string")
    limit = int(text)
    if limit > MAX_PAGE_SIZE:
        raise invalid(_beyond("above maximum", "<=", MAX_PAGE_SIZE, limit), "integer_above_max_value", "limit")
    if limit < 1:
        raise invalid(_beyond("below minimum", ">=", 1, limit), "integer_below_min_value", "limit")
    return limit


def _one_of(values: Collection[str], name: str, given: str) -> str:
    if given not in values:
        known = sorted(values)
        supported = ", ".join(f"'{each}'" for each in known[:-1])
        message = f"Invalid value: '{clip(given)}'. Supported values are: {supported} and '{known[-1]}'."
        raise invalid(message, "invalid_value", name)
    return given


def _beyond(what: str, sign: str, bound: int, given: int) -> str:
    return f"Invalid 'limit': integer {what} value. Expected a value {sign} {bound}, but got {given} instead."


def unknown_parameter(name: str) -> RequestInvalid:
    """Returns the error of a name that nothing has."""
    return invalid(f"Unknown parameter: '{clip(name)}'.", "unknown_parameter", clip(name))
