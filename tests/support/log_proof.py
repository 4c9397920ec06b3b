"""Random changes against the log of changes: callers are told what `tests.support.reference` allows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import asyncpg

from server.authorization.access import Access
from server.errors import ActionDenied
from server.policy.principal import pairs
from server.store.connection.database import Database
from server.store.conversation_changes import ConversationChanges
from server.store.log_position import LogPosition
from tests.support import reference
from tests.support.reference import What
from tests.support.worlds import World, who

_CHANGED = 8  # conversations of a world
_MOST_CHANGES = 3  # of each


@dataclass
class Changed:
    """A conversation that was changed.

    Attributes:
        states: Tenant and what a policy reads, before the first change and after each.
        is_deleted: Whether the last change deleted it.
    """

    id: str
    states: list[tuple[str, What]] = field(default_factory=list)
    is_deleted: bool = False


class LogProof:
    """Changes conversations, and compares what each caller is told of that.

    Args:
        database: Whose log of changes is on.
        connection: Of the same database.
        rng: What is random.
        tenant: Of the callers.
    """

    def __init__(self, database: Database, connection: asyncpg.Connection, rng: Random, tenant: str) -> None:
        self._changes = ConversationChanges(database)
        self._connection = connection
        self._rng = rng
        self._tenant = tenant
        self._changed: list[Changed] = []
        self._position = LogPosition(0)

    async def change(self, rows: Sequence[tuple[str, What]]) -> None:
        """Changes some of ``rows``, each stored with its tenant: attributes, owner or tenant; or deletes them."""
        self._position = await self._changes.start()
        self._changed = [Changed(row[1].id, [row]) for row in self._rng.sample(rows, _CHANGED)]
        for changed in self._changed:
            for _ in range(self._rng.randint(1, _MOST_CHANGES)):
                await self._change_once(changed, self._rng.choice(rows)[1])

    async def _change_once(self, changed: Changed, other: What) -> None:
        """Makes it more like ``other``, moves it or deletes it."""
        tenant, what = changed.states[-1]
        owner, attributes = what.owner, what.attributes
        match self._rng.choice(("attributes", "attributes", "owner", "tenant", "delete", "nothing")):
            case "attributes":
                attributes = other.attributes
            case "owner":
                owner = other.owner
            case "tenant":
                tenant = self._rng.choice((self._tenant, "theirs"))
            case "delete":
                changed.is_deleted = True
        changed.states.append((tenant, What(owner, attributes, changed.id)))
        await self._connection.execute(
            """UPDATE conversations SET tenant = $2, owner = $3, attributes = $4, version = version + 1,
                   delete_time = CASE WHEN $5 THEN now() END
               WHERE id = $1""",
            *(changed.id, tenant, owner, sorted(pairs(attributes)), changed.is_deleted),
        )

    def expected(self, world: World, access: Access) -> dict[str, bool]:
        """The ids of which a caller is to be told, and whether it can read them now."""

        def is_readable(state: tuple[str, What]) -> bool:
            tenant, what = state
            return tenant == self._tenant and reference.allowed(
                world.rules, who(access.principal), "conversation", "read", what
            )

        return {
            changed.id: is_readable(changed.states[-1]) and not changed.is_deleted
            for changed in self._changed
            if any(map(is_readable, changed.states))
        }

    async def found(self, access: Access) -> Mapping[str, bool]:
        """The ids of which a caller is told, and whether as readable."""
        try:
            found = await self._changes.read(access, self._position, include_items=False)
        except ActionDenied:
            return {}
        return {change.key.conversation_id: change.conversation is not None for change in found.changes}
