"""The records of an import: checked, and cut into the blocks that its digest is made of."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from conversations.v1 import conversation_pb2, item_pb2
from conversations.v1 import transfer_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from server.errors import FieldInvalid, Violation
from server.items import PART_TAG, ItemJsonError, check_item
from server.policy.attributes import attribute_pairs
from server.services.messages import revision_of
from server.services.new_items import UNKNOWN, columns_of
from server.settings.retention import RetentionRule
from server.store.checksum import BLOCK_BYTES, BLOCK_ITEMS
from server.store.expiry import Expiry
from server.store.imports import ImportedHead, ImportedItem

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = (int((datetime(year, 1, 1, tzinfo=UTC) - _EPOCH).total_seconds()) for year in (1, 9999))
_MAX_OWNER_BYTES = 256
_MAX_REVISION = 2**62
_FORKED_ID = re.compile("(conv[A-Za-z0-9_-]{0,60})?")


@dataclass(frozen=True, slots=True)
class Block:
    """Items that are stored together.

    Attributes:
        rows: In the order of sequences.
        wire: A serialized `Record.Items`, for the digest.
    """

    rows: list[ImportedItem]
    wire: bytes


def head_of(message: conversation_pb2.Conversation, rule: RetentionRule, now: datetime) -> ImportedHead:
    """Returns what a conversation will be.

    Args:
        message: Keeps the rules of the contract.
        rule: Of the tenant; a later end than it allows is lowered to that.
        now: When a conversation that ended before has ended already.

    Raises:
        FieldInvalid: With every violation.
    """
    wrong = [*_head_violations(message)]
    end = None if wrong else _end_of(message, rule)
    if end is not None and end <= now:
        wrong.append(Violation("expire_time", "must lie ahead, also with what the tenant may have", "import.expired"))
    if wrong:
        at = "record.conversation"
        raise FieldInvalid(*(Violation(f"{at}.{each.field}", each.rule, each.reason) for each in wrong))
    attributes = {name: list(values.values) for name, values in message.attributes.items()}
    is_fork = message.HasField("forked_from")
    return ImportedHead(
        owner=message.owner,
        attributes=sorted(set(attribute_pairs(attributes))),
        metadata=dict(message.metadata),
        last_sequence=message.last_sequence,
        revision=min(revision_of(message.etag) or 1, _MAX_REVISION),
        create_time=_moment(message.create_time),
        update_time=_moment(message.update_time),
        expiry=Expiry(end, message.idle_ttl.ToTimedelta(), _limit_of(message, rule)),
        forked_from=message.forked_from.conversation_id if is_fork else None,
        forked_sequence=message.forked_from.sequence if is_fork else None,
    )


def _head_violations(message: conversation_pb2.Conversation) -> Iterator[Violation]:
    yield from _time_violations("create_time", message.create_time)
    yield from _time_violations("update_time", message.update_time)
    if message.HasField("expire_time"):
        yield from _time_violations("expire_time", message.expire_time)
    if message.HasField("ttl"):
        yield Violation("ttl", "must not be set: an export has expire_time", "import.ttl")
    if message.idle_ttl.nanos % 1_000:
        yield Violation("idle_ttl", "must be in microseconds", "import.time")
    if not message.id:
        yield Violation("id", "is required", "import.id")
    if len(message.owner.encode()) > _MAX_OWNER_BYTES or "\0" in message.owner:
        yield Violation("owner", f"must have at most {_MAX_OWNER_BYTES} bytes, without U+0000", "import.owner")
    if message.last_sequence < 0:
        yield Violation("last_sequence", "must be 0 or more", "import.last_sequence")
    if not _FORKED_ID.fullmatch(message.forked_from.conversation_id):
        yield Violation("forked_from.conversation_id", "must be the id of a conversation", "import.forked_from")


def _end_of(message: conversation_pb2.Conversation, rule: RetentionRule) -> datetime | None:
    """Returns when a conversation ends by itself; None for never."""
    own = _moment(message.expire_time) if message.HasField("expire_time") else None
    return min(filter(None, (own, _limit_of(message, rule))), default=None)


def _limit_of(message: conversation_pb2.Conversation, rule: RetentionRule) -> datetime | None:
    return _moment(message.create_time) + rule.at_most if rule.at_most else None


class BlockCutter:
    """Collects the items of one conversation, and cuts blocks of them.

    Args:
        after: The sequence of the last item that is there; items up to it are passed over.
        last: Of the conversation.
        max_item_bytes: Largest item, serialized.
    """

    def __init__(self, after: int, last: int, max_item_bytes: int) -> None:
        self._after = self._stored = after
        self._last = last
        self._max_item_bytes = max_item_bytes
        self._items: list[item_pb2.Item] = []
        self._rows: list[ImportedItem] = []
        self._size = 0

    def add(self, items: Sequence[item_pb2.Item]) -> list[Block]:
        """Returns the blocks that are complete with ``items``, which are the next ones.

        Raises:
            FieldInvalid: With every violation in every item.
        """
        new = [item for item in items if item.sequence > self._stored or item.sequence < 1]
        wrong: list[Violation] = []
        blocks: list[Block] = []
        for index, item in enumerate(new):
            row = self._row(item)
            if violations := self._violations(item, row):
                at = f"record.items.items[{len(items) - len(new) + index}]"
                wrong += [Violation(f"{at}{each.field}", each.rule, each.reason) for each in violations]
                continue
            size = len(row[-1])
            if self._rows and (len(self._rows) == BLOCK_ITEMS or self._size + size > BLOCK_BYTES):
                blocks.append(self._cut())
            self._items.append(item)
            self._rows.append(row)
            self._size += size
            self._after = row[0]
        if wrong:
            raise FieldInvalid(*wrong)
        return blocks

    def rest(self) -> list[Block]:
        """Returns the last block, if there are items that are in none."""
        return [self._cut()] if self._rows else []

    def _cut(self) -> Block:
        block = Block(self._rows, pb.Record.Items(items=self._items).SerializeToString(deterministic=True))
        self._items, self._rows, self._size = [], [], 0
        return block

    def _row(self, item: item_pb2.Item) -> ImportedItem:
        arm = item.WhichOneof("body") or UNKNOWN
        sequence = item.sequence
        item.ClearField("sequence")
        body = item.SerializeToString(deterministic=True)
        item.sequence = sequence
        time = item.create_time
        moment = _EPOCH if _time_violations("", time) else _moment(time)
        return (sequence, item.created_by, *columns_of(item, arm), moment, body)

    def _violations(self, item: item_pb2.Item, row: ImportedItem) -> list[Violation]:
        sequence, item_id, body = row[0], row[2], row[-1]
        wrong = list(_time_violations(".create_time", item.create_time))
        if not self._after < sequence <= self._last:
            rule = f"must be above that of the item before, and at most last_sequence, {self._last}"
            wrong.append(Violation(".sequence", rule, "import.sequence"))
        if not item_id:
            wrong.append(Violation(".id", "is required", "import.item_id"))
        if len(body) > self._max_item_bytes:
            wrong.append(Violation("", f"must have at most {self._max_item_bytes} bytes", "item.max_bytes"))
        if item.json or item.WhichOneof("body") == UNKNOWN or PART_TAG in body:
            wrong += _json_violations(item)
        return wrong


def _json_violations(item: item_pb2.Item) -> Iterator[Violation]:
    try:
        check_item(item)
    except ItemJsonError as error:
        yield Violation(f".{error.path}", error.rule, "item.json")


def _time_violations(name: str, time: Timestamp) -> Sequence[Violation]:
    """Returns what is wrong with a time; PostgreSQL has microseconds, so what is finer would be lost."""
    if _FIRST <= time.seconds < _LAST and 0 <= time.nanos < 1_000_000_000 and not time.nanos % 1_000:
        return () if time.seconds or time.nanos else (Violation(name, "is required", "import.time"),)
    return (Violation(name, "must be a time of the years 1 to 9998, in microseconds", "import.time"),)


def _moment(time: Timestamp) -> datetime:
    return _EPOCH + timedelta(0, time.seconds, time.nanos // 1_000)
