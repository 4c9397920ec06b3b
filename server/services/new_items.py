"""New items: checked, completed with ids and defaults, and made into a `Batch` for the store."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from conversations.v1 import item_pb2, item_status_pb2, options_pb2

from server.errors import FieldInvalid, Violation
from server.items import PART_TAG, ItemJsonError, check_item, has_own_status, role_name, status_name
from server.requests.large import current_size, run_sized
from server.services.messages import timestamp
from server.store.batch import Batch, Reference
from server.store.ids import new_item_ids

UNKNOWN = "unknown"
_UNKNOWN_PREFIX = "item"  # of new ids of items whose type the schema does not know

Status: TypeAlias = "item_status_pb2.ItemStatus.ValueType"


@dataclass(frozen=True, slots=True)
class TypeRules:
    """The `item_type` option of one arm of `Item.body`, and whether the arm has a role.

    Attributes:
        required_prefix: Of an id that the caller chose; "" allows any.
        minted_prefix: Of an id that the server makes.
        statuses: Those an item of the type may have; none if it has no status.
        default_status: Set when the caller sent none; 0 leaves it unset.
    """

    required_prefix: str
    minted_prefix: str
    statuses: frozenset[Status]
    default_status: Status
    has_role: bool


def _type_rules() -> dict[str, TypeRules]:
    rules = {}
    for arm in item_pb2.Item.DESCRIPTOR.oneofs_by_name["body"].fields:
        option = arm.GetOptions().Extensions[options_pb2.item_type]
        rules[arm.name] = TypeRules(
            required_prefix=option.id_prefix,
            minted_prefix=option.minted_id_prefix or option.id_prefix or _UNKNOWN_PREFIX,
            statuses=frozenset(option.statuses),
            default_status=option.default_status,
            has_role=arm.message_type is not None and "role" in arm.message_type.fields_by_name,
        )
    return rules


TYPE_RULES = _type_rules()


@dataclass(frozen=True)
class BatchBuilder:
    """Makes the batch of one request.

    Args:
        max_item_bytes: Largest item, serialized.
        max_batch_bytes: Largest sum of the items of one request, serialized.
    """

    max_item_bytes: int
    max_batch_bytes: int

    async def prepare(
        self, new: Sequence[item_pb2.NewItem], conversation_id: str, created_by: str, now: datetime
    ) -> Batch:
        """Returns what `build` returns; it runs in a thread if the request is large."""
        return await run_sized(current_size.get(), self.build, new, conversation_id, created_by, now)

    def build(self, new: Sequence[item_pb2.NewItem], conversation_id: str, created_by: str, now: datetime) -> Batch:
        """Returns the rows to store; the items of ``new`` are changed in place.

        Args:
            new: 1 to 20 items or references, valid by the rules of the contract.
            conversation_id: Where they are appended; ids are derived from it.
            created_by: Id of the caller.
            now: Time of creation of all of them.

        Raises:
            FieldInvalid: With every violation in every item.
        """
        references = [_reference(each) for each in new]
        items = [each.item for each in new]  # an empty one where there is a reference
        arms = [item.WhichOneof("body") or UNKNOWN for item in items]
        violations = [
            violation
            for index, (item, arm, reference) in enumerate(zip(items, arms, references, strict=True))
            if reference is None
            for violation in _violations(index, item, arm)
        ]
        ids = new_item_ids([TYPE_RULES[arm].minted_prefix for arm in arms], conversation_id)
        for item, arm, new_id in zip(items, arms, ids, strict=True):
            _complete(item, TYPE_RULES[arm], new_id)
        # Fields of a serialized message come in any order: those that all items share are serialized once.
        shared = item_pb2.Item(create_time=timestamp(now), created_by=created_by).SerializeToString()
        bodies = [item.SerializeToString() + shared for item in items]
        violations += _json_violations(items, arms, bodies) + self._size_violations(bodies)
        if violations:
            raise FieldInvalid(*violations)
        return _batch(items, arms, references, bodies)

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


def _reference(new: item_pb2.NewItem) -> Reference | None:
    if new.WhichOneof("source") != "reference":
        return None
    return Reference(new.reference.conversation_id, new.reference.item_id)


def _violations(index: int, item: item_pb2.Item, arm: str) -> list[Violation]:
    """Returns the rules that depend on the type and are broken; protovalidate's options cannot express them."""
    rules, wrong = TYPE_RULES[arm], []
    item_id, status, json = item.id, item.status, item.json
    if item_id and not item_id.startswith(rules.required_prefix):
        wrong.append(Violation(f"{_at(index)}.id", f"must begin with '{rules.required_prefix}'", "item.id_prefix"))
    if status and status not in rules.statuses and arm != UNKNOWN:
        names = ", ".join(sorted(map(status_name, rules.statuses))) or "unset"
        wrong.append(Violation(f"{_at(index)}.status", f"must be {names} for this type", "item.status"))
    # With `json` the role may be a newer one, which the schema has no value for.
    if rules.has_role and not json and not getattr(item, arm).role:
        wrong.append(Violation(f"{_at(index)}.{arm}.role", "is required", "item.role"))
    return wrong


def _json_violations(items: Sequence[item_pb2.Item], arms: Sequence[str], bodies: Sequence[bytes]) -> list[Violation]:
    """Returns what is wrong with the JSON inside items; most items have none, and are not searched."""
    wrong = []
    for index, (item, arm, body) in enumerate(zip(items, arms, bodies, strict=True)):
        if item.json or arm == UNKNOWN or PART_TAG in body:
            try:
                check_item(item)
            except ItemJsonError as error:
                wrong.append(Violation(f"{_at(index)}.{error.path}", error.rule, "item.json"))
    return wrong


def _at(index: int) -> str:
    return f"items[{index}].item"


def _complete(item: item_pb2.Item, rules: TypeRules, new_id: str) -> None:
    """Clears output-only fields, and sets id and status where the caller left them out."""
    item.ClearField("sequence")
    item.ClearField("create_time")
    item.ClearField("created_by")
    if not item.id:
        item.id = new_id
    if rules.default_status and not item.status and not (item.json and has_own_status(item)):
        item.status = rules.default_status


_REFERENCE_ROW = ("", "", "", "", b"")  # the statement reads the referenced item


def _batch(
    items: list[item_pb2.Item], arms: list[str], references: list[Reference | None], bodies: list[bytes]
) -> Batch:
    rows = [
        _REFERENCE_ROW if reference else (*columns_of(item, arm), body)
        for item, arm, reference, body in zip(items, arms, references, bodies, strict=True)
    ]
    ids, types, roles, statuses, stored = zip(*rows, strict=True)
    return Batch(ids, types, roles, statuses, stored, references)


def columns_of(item: item_pb2.Item, arm: str) -> tuple[str, str, str, str]:
    """Returns id, type, role and status as the store's columns have them."""
    type_ = item.unknown.type if arm == UNKNOWN else arm
    role = role_name(getattr(item, arm).role) if TYPE_RULES[arm].has_role else ""
    return item.id, type_, role, status_name(item.status)
