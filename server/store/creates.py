"""Creates of conversations, as parameters of a statement for one and for several."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from server.authorization.access import Access
from server.policy.residual import Row
from server.store.array_parameters import array_parameters
from server.store.batch import EMPTY_BATCH, Batch
from server.store.expiry import NEVER, Expiry
from server.store.idempotency import Reservation, reservation_values
from server.store.pending_write import PendingWrite
from server.store.sql.creates import ATTRIBUTES, CREATES, EXPIRIES, ITEMS, REQUESTS
from server.store.sql.text_values import array_as_text

MAX_ROWS = 1_000  # of a shared statement
MAX_BYTES = 1024 * 1024  # of a shared statement; a create of more than a quarter does not share one


@dataclass(slots=True, eq=False)
class Create(PendingWrite[bool]):
    """A conversation and its first items that one call creates.

    Attributes:
        access: Of the caller, who becomes the owner.
        conversation_id: Of `new_id`.
        metadata: At most `MAX_PAIRS` pairs.
        attributes: Each ``name=value``; sorted, each once.
        batch: The first items; empty for none.
        reservation: Of the request id.
        now: The create_time.
        expiry: When the conversation ends by itself.
        on_stored: Called with access and conversation id once it is committed, even if nobody waits for it any more.
        answer: Whether it was stored.
        key_taken: Whether it was not, because an earlier call used its request id.
        rows: How many rows it inserts.
        size: Characters and bytes of what it stores, the fixed columns not counted.
        can_batch: Whether it may share a statement with other creates.
    """

    access: Access
    conversation_id: str
    metadata: dict[str, str]
    attributes: Sequence[str]
    batch: Batch
    reservation: Reservation | None
    now: datetime
    expiry: Expiry = NEVER
    on_stored: Callable[[Access, str], None] | None = None
    key_taken: bool = field(default=False, init=False)
    metadata_json: str = field(init=False)
    rows: int = field(init=False)
    size: int = field(init=False)
    can_batch: bool = field(init=False)

    def __post_init__(self) -> None:
        self.attributes = sorted(set(self.attributes))
        self.metadata_json = json.dumps(self.metadata, ensure_ascii=False) if self.metadata else "{}"
        batch = self.batch
        self.rows = 1 + len(self.attributes) + len(batch)
        self.size = len(self.metadata_json) + sum(map(len, self.attributes)) + sum(map(len, batch.bodies))
        # An id that two of its items have would fail the statement of all.
        alone = batch.has_references or len(set(batch.item_ids)) < len(batch)
        self.can_batch = not alone and self.size <= MAX_BYTES // 4

    @property
    def expires(self) -> bool:
        """Whether the conversation has an expiry."""
        return self.expiry is not NEVER

    @property
    def is_repeatable(self) -> bool:
        """Whether it has a request id."""
        return self.reservation is not None

    def authorize(self) -> None:
        """Applies the policy to the conversation and its first items as they would be stored.

        Raises:
            ActionDenied: The policy does not let the caller create them.
        """
        access, owner, pairs = self.access, self.access.principal.id, frozenset(self.attributes)
        access.decide_values(self.attributes)
        access.decide("conversation", "create", Row(owner, pairs, self.conversation_id))
        for item_id in self.batch.all_ids:
            access.decide("item", "create", Row(owner, pairs, item_id))

    def empty(self) -> None:
        """Forgets the items."""
        self.batch = EMPTY_BATCH

    def mark_stored(self) -> None:
        """Notes that it is committed."""
        if self.on_stored:
            self.on_stored(self.access, self.conversation_id)

    def values(self, batch: Batch, max_bytes: int) -> dict[str, Any]:
        """The parameters of the statement `create`.

        Args:
            batch: Its items.
            max_bytes: The most bytes of all items, those copied included.
        """
        return {
            **self.access.values,
            "conversation_id": self.conversation_id,
            "owner": self.access.principal.id,
            "attributes": self.attributes,
            "metadata": self.metadata_json,
            "last_sequence": len(self.batch),
            "now": self.now,
            "max_bytes": max_bytes,
            **(self.expiry.values() if self.expires else {}),
            **(batch.values(self.now, self.access.principal.id) if batch else {}),
            **reservation_values(self.access.principal, self.reservation),
        }

    def row(self) -> dict[str, Any]:
        """The row of the conversation that it has stored."""
        return {
            "id": self.conversation_id,
            "owner": self.access.principal.id,
            "attributes": self.attributes,
            "metadata": self.metadata,
            "last_sequence": len(self.batch),
            "revision": 1,
            "create_time": self.now,
            "update_time": self.now,
            **self.expiry.values(),
            "forked_from": None,
            "active_time": self.now,
        }


def statement_parameters(creates: Sequence[Create], *, expires: bool) -> dict[str, Any]:
    """The parameters of `create_many`."""
    ends = [tuple(create.expiry.values().values()) for create in creates] if expires else []
    return {
        **array_parameters("creates", CREATES, [_create_row(create) for create in creates]),
        **array_parameters("creates", EXPIRIES, ends),
        **array_parameters("attributes", ATTRIBUTES, [row for create in creates for row in _attribute_rows(create)]),
        **array_parameters("items", ITEMS, [row for create in creates for row in _item_rows(create)]),
        **array_parameters("requests", REQUESTS, [row for create in creates for row in _request_rows(create)]),
    }


def _create_row(create: Create) -> tuple[Any, ...]:
    principal = create.access.principal
    attributes = array_as_text(create.attributes)
    key = (create.conversation_id, principal.tenant, principal.id)
    return (*key, attributes, create.metadata_json, len(create.batch), create.now)


def _attribute_rows(create: Create) -> Iterator[tuple[Any, ...]]:
    for attribute in create.attributes:
        yield (create.conversation_id, attribute, create.access.principal.tenant, create.now)


def _item_rows(create: Create) -> Iterator[tuple[Any, ...]]:
    batch = create.batch
    columns = (batch.item_ids, batch.types, batch.roles, batch.statuses, batch.bodies)
    for sequence, (*words, body) in enumerate(zip(*columns, strict=True), 1):
        yield (create.conversation_id, sequence, *words, create.now, body)


def _request_rows(create: Create) -> Iterator[tuple[Any, ...]]:
    if reservation := create.reservation:
        key = (reservation.method, reservation.request_id, reservation.fingerprint)
        yield (create.conversation_id, create.access.principal.id, *key)
