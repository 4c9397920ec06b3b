"""Appends, and groups of them as rows of a shared statement."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from typing import Any

from server.authorization.access import Access
from server.authorization.permission import Permission
from server.store.array_parameters import array_parameters
from server.store.batch import EMPTY_BATCH, Batch
from server.store.change_hub import ChangeHub
from server.store.idempotency import Reservation
from server.store.pending_write import PendingWrite
from server.store.sql.appends import GROUPS, ITEMS, REQUESTS
from server.store.sql.text_values import array_as_text

MAX_ITEMS = 1_000  # of a shared statement
MAX_BYTES = 1024 * 1024  # of a shared statement; an append of more than a quarter does not share one


@dataclass(slots=True, eq=False)
class Append(PendingWrite[int | None]):
    """The items that one call appends to one conversation.

    Attributes:
        expected: The last_sequence the conversation must have; None for any.
        permissions: To read the conversation, and to create items in it.
        item_count: The number of items.
        size: Bytes of all items.
        can_batch: Whether it may share a statement with other appends.
        answer: The last sequence before the items, or None when they were not stored.
        on_stored: Called with access, conversation and item ids once the items are committed, even if
            nobody waits for them any more.
        stored: Whether its items are committed.
        hub: Is told then.

    Raises:
        ActionDenied: The policy lets the caller append to no conversation at all.
    """

    access: Access
    conversation_id: str
    batch: Batch
    expected: int | None
    reservation: Reservation | None
    now: datetime
    permissions: tuple[Permission, Permission] = field(init=False)
    item_count: int = field(init=False)
    size: int = field(init=False)
    can_batch: bool = field(init=False)
    on_stored: Callable[[Access, str, Sequence[str]], None] | None = None
    stored: bool = field(default=False, init=False)
    hub: ChangeHub | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.permissions = self.access.demand("conversation", "read"), self.access.demand("item", "create")
        if self.batch.has_references:
            self.access.demand("item", "read")
        self.item_count = len(self.batch)
        self.size = sum(map(len, self.batch.bodies))
        depends_on_id = self.permissions[1].reads_row_id
        self.can_batch = not (self.batch.has_references or depends_on_id) and self.size <= MAX_BYTES // 4

    def empty(self) -> None:
        """Forgets the items."""
        self.batch = EMPTY_BATCH

    @property
    def is_repeatable(self) -> bool:
        """Whether it has a request id."""
        return self.reservation is not None

    def mark_stored(self) -> None:
        """Notes that the items are committed."""
        self.stored = True
        if self.hub:
            self.hub.note_change(self.conversation_id)
        if self.on_stored:
            self.on_stored(self.access, self.conversation_id, self.batch.all_ids)

    def can_join(self, other: "Append") -> bool:
        """Whether one statement can run both; it is repeated for all or for none when its connection is lost."""
        return self.permissions == other.permissions and self.is_repeatable == other.is_repeatable


class Group:
    """Appends of one caller to one conversation, in order; one row of a shared statement."""

    def __init__(self, first: Append) -> None:
        self.first = first
        self.appends = [first]
        self.item_count = first.item_count
        self.size = first.size

    @property
    def conversation_id(self) -> str:
        """The conversation of all its appends."""
        return self.first.conversation_id

    def add(self, append: Append) -> bool:
        """Adds an append if its precondition holds whenever that of the first one does; whether it did."""
        if append.access is not self.first.access or append.expected != self._next_expected():
            return False
        self.appends.append(append)
        self.item_count += append.item_count
        self.size += append.size
        return True

    def succeed(self, base: int) -> None:
        """Gives each caller its result; ``base`` is the last sequence before the whole group."""
        for append in self.appends:
            append.mark_stored()
            append.succeed(base)
            base += append.item_count

    def fail(self, error: Exception) -> None:
        """Gives each caller the error."""
        for append in self.appends:
            append.fail(error)

    def abandon(self) -> None:
        """As `Append.abandon`, for each."""
        for append in self.appends:
            append.abandon()

    def _next_expected(self) -> int | None:
        return None if self.first.expected is None else self.first.expected + self.item_count


def statement_parameters(groups: Sequence[Group]) -> dict[str, Any]:
    """The parameters of `append_many`."""
    read, create = groups[0].first.permissions
    values = sorted({**read.values, **create.values})
    numbered = list(enumerate(groups, 1))
    return {
        **array_parameters("groups", (*GROUPS, *values), [_group_row(group, values) for group in groups]),
        **array_parameters("items", ITEMS, [row for each in numbered for row in _item_rows(*each)]),
        **array_parameters("requests", REQUESTS, [row for each in numbered for row in _request_rows(*each)]),
    }


def _group_row(group: Group, names: Iterable[str]) -> tuple[Any, ...]:
    first = group.first
    values = [_as_text(first.access.values[name]) for name in names]
    principal = first.access.principal
    key = (principal.tenant, first.conversation_id, principal.id)
    now = max(append.now for append in group.appends)
    return (*key, group.item_count, len(group.appends), first.expected, now, *values)


def _item_rows(number: int, group: Group) -> Iterator[tuple[Any, ...]]:
    place = 0
    for append in group.appends:
        batch, now = append.batch, append.now
        for row in zip(batch.item_ids, batch.types, batch.roles, batch.statuses, batch.bodies, strict=True):
            place += 1
            *words, body = row
            yield (number, place, *words, now, body)


def _request_rows(number: int, group: Group) -> Iterator[tuple[Any, ...]]:
    first_places = accumulate((append.item_count for append in group.appends), initial=1)
    for append, first_place in zip(group.appends, first_places, strict=False):
        if reservation := append.reservation:
            principal = append.access.principal.id
            key = (reservation.method, reservation.request_id, reservation.fingerprint)
            yield (number, principal, *key, first_place, append.item_count)


def _as_text(value: str | list[str]) -> str:
    """A value of a permission as an element of a text array."""
    return value if isinstance(value, str) else array_as_text(value)
