"""New items on their way in: checked, given ids and defaults, and turned into a Batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from conversations.v1 import item_pb2, item_status_pb2, options_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from server.errors import FieldInvalid, Violation
from server.ids import new_item_ids
from server.items import ItemJsonError, check_item, item_type, role, status_name
from server.store.batch import Batch, Reference

UNKNOWN = "unknown"
_UNKNOWN_PREFIX = "item"  # of the ids given to items of a type this build does not know


Status: TypeAlias = "item_status_pb2.ItemStatus.ValueType"


@dataclass(frozen=True)
class TypeRules:
    """The `item_type` option of one arm of `Item.body`."""

    required_prefix: str
    minted_prefix: str
    statuses: frozenset[Status]
    default_status: Status


def _type_rules() -> dict[str, TypeRules]:
    rules = {}
    for arm in item_pb2.Item.DESCRIPTOR.oneofs_by_name["body"].fields:
        option = arm.GetOptions().Extensions[options_pb2.item_type]
        rules[arm.name] = TypeRules(
            required_prefix=option.id_prefix,
            minted_prefix=option.minted_id_prefix or option.id_prefix or _UNKNOWN_PREFIX,
            statuses=frozenset(option.statuses),
            default_status=option.default_status,
        )
    return rules


TYPE_RULES = _type_rules()
_WITH_ROLE = frozenset(
    arm.name
    for arm in item_pb2.Item.DESCRIPTOR.oneofs_by_name["body"].fields
    if arm.message_type is not None and "role" in arm.message_type.fields_by_name
)


@dataclass(frozen=True)
class Admission:
    """Takes items in.

    Args:
        max_item_bytes: Largest item, serialized.
        max_batch_bytes: Largest sum of the items of one request.
    """

    max_item_bytes: int
    max_batch_bytes: int

    def batch(
        self, new: Sequence[item_pb2.NewItem], conversation_id: str, created_by: str, now: datetime
    ) -> tuple[Batch, list[item_pb2.Item]]:
        """The rows to store, and the items as they will be read but for their sequence.

        The items are those of ``new``, changed in place; a reference gives an
        empty one.

        Raises:
            FieldInvalid: Every violation in every item.
        """
        violations: list[Violation] = []
        stamp = Timestamp()
        stamp.FromDatetime(now)
        items = [each.item for each in new]
        references = [_reference(each) for each in new]
        ids = new_item_ids([TYPE_RULES[_arm(item)].minted_prefix for item in items], conversation_id)
        for index, (item, reference) in enumerate(zip(items, references, strict=True)):
            if reference is None:
                violations += _violations(f"items[{index}].item", item)
                _complete(item, ids[index], created_by, stamp)
        bodies = [b"" if ref else item.SerializeToString() for item, ref in zip(items, references, strict=True)]
        violations += self._size_violations(bodies)
        if violations:
            raise FieldInvalid(*violations)
        return _batch(items, references, bodies), items

    def _size_violations(self, bodies: Sequence[bytes]) -> list[Violation]:
        rule = f"must have at most {self.max_item_bytes} bytes"
        wrong = [
            Violation(f"items[{index}].item", rule, "item.max_bytes")
            for index, body in enumerate(bodies)
            if len(body) > self.max_item_bytes
        ]
        if not wrong and sum(map(len, bodies)) > self.max_batch_bytes:
            wrong.append(
                Violation("items", f"must have at most {self.max_batch_bytes} bytes together", "items.max_bytes")
            )
        return wrong


def _arm(item: item_pb2.Item) -> str:
    return item.WhichOneof("body") or UNKNOWN


def _reference(new: item_pb2.NewItem) -> Reference | None:
    if new.WhichOneof("source") == "item":
        return None
    return Reference(new.reference.conversation_id, new.reference.item_id)


def _violations(path: str, item: item_pb2.Item) -> list[Violation]:
    """What the contract's annotations cannot say: rules that depend on the type."""
    wrong = []
    rules = TYPE_RULES[_arm(item)]
    if item.id and not item.id.startswith(rules.required_prefix):
        wrong.append(Violation(f"{path}.id", f"must begin with '{rules.required_prefix}'", "item.id_prefix"))
    if item.status and _arm(item) != UNKNOWN and item.status not in rules.statuses:
        names = ", ".join(sorted(status_name(status) for status in rules.statuses)) or "unset"
        wrong.append(Violation(f"{path}.status", f"must be {names} for this type", "item.status"))
    if not item.json and _role_is_missing(item):
        wrong.append(Violation(f"{path}.{_arm(item)}.role", "is required", "item.role"))
    if (item.json or item.HasField("unknown")) and (rule := _contradiction(item)):
        wrong.append(Violation(path, rule, "item.json"))
    return wrong


def _role_is_missing(item: item_pb2.Item) -> bool:
    """Not a rule in the contract: with ``json``, the role may be one this build has no name for."""
    arm = _arm(item)
    return arm in _WITH_ROLE and not getattr(item, arm).role


def _contradiction(item: item_pb2.Item) -> str | None:
    """How the item's JSON and its body differ, when they do."""
    try:
        check_item(item)
    except ItemJsonError as error:
        return str(error)
    return None


def _complete(item: item_pb2.Item, new_id: str, created_by: str, stamp: Timestamp) -> None:
    """Sets what the server decides, whatever was sent."""
    item.id = item.id or new_id
    item.sequence = 0
    item.status = item.status or TYPE_RULES[_arm(item)].default_status
    item.created_by = created_by
    item.create_time.CopyFrom(stamp)


def _batch(items: list[item_pb2.Item], references: list[Reference | None], bodies: list[bytes]) -> Batch:
    kept = [None if reference else item for item, reference in zip(items, references, strict=True)]
    return Batch(
        item_ids=[item.id if item else "" for item in kept],
        types=[item_type(item) if item else "" for item in kept],
        roles=[role(item) if item else "" for item in kept],
        statuses=[status_name(item.status) if item else "" for item in kept],
        bodies=bodies,
        references=references,
    )
