"""Random policies against PostgreSQL: what the store's statements give is what `tests.support.reference` allows.

``python -m tests.support.proof [SEED] [--cases N]`` decides 400,000 cases, prints the seed, and
exits with 1 at the first mismatch. A case is one (policy, principal, row, action).

With `CITUS_URL` the database is distributed. It has neither a log of changes nor the order by activity.
"""

import argparse
import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from random import Random, SystemRandom
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
from sqlalchemy import Text, bindparam, select

from server.authorization.access import Access, AccessCache
from server.authorization.permission import Permission
from server.errors import ConversationNotFound, ItemNotFound
from server.policy.plan import Always, Never
from server.policy.principal import Principal, pairs
from server.store import change_log
from server.store.bulk_deletes import BulkDeleteStore
from server.store.comparison import EARLIEST, LATEST, Comparison
from server.store.connection.bounds import Bounds
from server.store.connection.database import Database
from server.store.conversations import ConversationStore
from server.store.embedded import run_embedded
from server.store.items import ItemStore
from server.store.migrate import migrate
from server.store.response_budget import ResponseBudget
from server.store.sql import activity
from server.store.sql import conversations as statements
from server.store.sql.schema import conversations, items
from server.store.sql.statement import compile_statement
from server.store.sql.visibility import allowed, item_allowed
from tests.support import reference
from tests.support.database import verified_database
from tests.support.distributed import make_distributed_database
from tests.support.log_proof import LogProof
from tests.support.postgres import CITUS, drop_everywhere, with_database
from tests.support.reference import What
from tests.support.worlds import ACTIONS, SINGLETON, SINGLETON_ACTIONS, World, random_world, who

CASES = 400_000
TENANT, THEIRS = "ours", "theirs"
PARENTS = 4  # conversations of a world that have items
ITEM_IDS = ("a", "b", "conv_ab", "a-b", "_", "0")
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Mismatch(AssertionError):
    """The statements and the reference disagree."""


@dataclass
class Seen:
    """What has been compared; that it was not all the same is for the tests to ask."""

    decisions: Counter[bool] = field(default_factory=Counter)
    plans: Counter[str] = field(default_factory=Counter)
    lists: Counter[str] = field(default_factory=Counter)  # covered, whole, never
    pages: int = 0
    deleted: Counter[bool] = field(default_factory=Counter)  # rows, by whether a filter has deleted them
    told: Counter[bool] = field(default_factory=Counter)  # changes: whether the conversation can still be read
    keeps_changes: bool = True  # whether there is a log of changes to compare

    @property
    def cases(self) -> int:
        """How many decisions."""
        return self.decisions.total()

    def share(self, counter: Counter[Any], key: Any) -> float:
        """The part of ``counter`` that is ``key``."""
        return float(counter[key] / counter.total())

    def problems(self) -> list[str]:
        """What is too rare or too common for the comparison to mean much."""
        bounds: list[tuple[Counter[Any], Any, float, float]] = [
            (self.decisions, True, 0.1, 0.6),
            (self.plans, "Always", 0.05, 0.4),
            (self.plans, "Never", 0.1, 0.75),
            (self.plans, "Conditional", 0.2, 0.8),
            (self.lists, "covered", 0.1, 0.6),
            (self.lists, "whole", 0.1, 0.6),
            *([(self.told, True, 0.2, 0.8)] if self.keeps_changes else []),
        ]
        shares = [(key, self.share(counter, key), low, high) for counter, key, low, high in bounds]
        return [
            f"{key}: {share:.3f}, not {low} to {high}" for key, share, low, high in shares if not low < share < high
        ]


@dataclass(frozen=True)
class Placed:
    """A row of a world as it lies in the database."""

    what: What
    time: datetime

    @property
    def key(self) -> tuple[datetime, str]:
        """Its place in a list."""
        return self.time, self.what.id


def _copy(row: Placed, prefix: str) -> Placed:
    """A row that looks like ``row``, with another id."""
    return Placed(What(row.what.owner, row.what.attributes, f"{prefix}{row.what.id}"[:64]), row.time)


class Proof:
    """Compares world after world, each in tables that hold nothing else."""

    def __init__(self, database: Database, connection: asyncpg.Connection, rng: Random) -> None:
        self._database = database
        self._connection = connection
        self._rng = rng
        self._conversations = ConversationStore(database, 2**24)
        self._bulk_deletes = BulkDeleteStore(database, self._conversations)
        self._items = ItemStore(database, self._conversations, 2**20, ResponseBudget(2**20))
        self._log = LogProof(database, connection, Random(rng.getrandbits(32)), TENANT)
        self.seen = Seen(keeps_changes=not database.layout.is_distributed)

    async def until(self, cases: int) -> Seen:
        """What was seen in as many worlds as it takes.

        Raises:
            Mismatch: In one of them.
        """
        while self.seen.cases < cases:
            world = random_world(self._rng)
            await self.world(world)
            await self.deletes(world, 2)
        return self.seen

    async def world(self, world: World) -> None:
        """Stores the rows of ``world`` and compares all that its principals may do with them."""
        rows = self._rows(world)
        parents = self._rng.sample(rows, PARENTS)
        await self._stored(rows, parents)
        accesses = AccessCache(world.policy)
        for known in world.principals:
            access = accesses.of(Principal(TENANT, known.id, known.attributes))
            self._singletons_decided(world, access)
            await self._decided(world, access, rows)
            await self._items_decided(world, access, parents)
            await self._listed(world, access, rows)
            await self._got(world, access, rows)
            await self._items_got(world, access, parents)
        if self.seen.keeps_changes:
            await self._changed(world, accesses, rows)

    async def deletes(self, world: World, callers: int) -> None:
        """Stores the rows of ``world`` and deletes by a filter what some of its principals may delete, one by one."""
        state = self._rng.getstate()  # put back at the end: a seed gives the worlds that it gave before
        rows = self._rows(world)
        accesses = AccessCache(world.policy)
        for known in self._rng.sample(world.principals, callers):
            await self._stored(rows, [])
            await self._deleted(world, accesses.of(Principal(TENANT, known.id, known.attributes)), rows)
        self._rng.setstate(state)

    async def _deleted(self, world: World, access: Access, rows: Sequence[Placed]) -> None:
        """What a filter finds is deleted if it is listed and may be deleted; the store says how many that are."""
        everything = Comparison("create_time", ">=", "", EPOCH)
        owner = self._rng.choice(rows).what.owner
        asked = self._rng.choice(((everything,), (Comparison("owner", "=", "", owner), everything)))
        found = [row.what for row in rows if len(asked) == 1 or row.what.owner == owner]
        actions = ("read", "delete")
        taken = {each.id for each in found if all(_allowed(world, access, "conversation", a, each) for a in actions)}
        self.seen.deleted.update(row.what.id in taken for row in rows)
        if any(isinstance(access.may("conversation", action).plan, Never) for action in actions):
            self._same("deletes of nothing", world, access, set(), taken)
            return
        counted = await self._bulk_deletes.count(access, asked)
        done = await self._bulk_deletes.delete(access, asked)
        self._same("count", world, access, (len(taken), False), (counted.count, counted.has_more))
        self._same("deletes", world, access, (taken, False), (set(done.ids), done.has_more))
        living = await self._connection.fetch(
            "SELECT id FROM conversations WHERE tenant = $1 AND delete_time IS NULL", TENANT
        )
        expected = {row.what.id for row in rows} - taken
        self._same("what is left", world, access, expected, {row["id"] for row in living})

    async def _changed(self, world: World, accesses: AccessCache, rows: Sequence[Placed]) -> None:
        """Changes some of ``rows`` and compares what each principal is told of that."""
        strangers = [(THEIRS, _copy(row, "t_").what) for row in rows[:6]]
        await self._log.change([*((TENANT, row.what) for row in rows), *strangers])
        for known in world.principals:
            await self._told(world, accesses.of(Principal(TENANT, known.id, known.attributes)))

    async def _told(self, world: World, access: Access) -> None:
        """What the log of changes tells of conversations that were changed."""
        expected = self._log.expected(world, access)
        self.seen.told.update(expected.values())
        self._same("log of changes", world, access, expected, dict(await self._log.found(access)))

    def _rows(self, world: World) -> list[Placed]:
        """The rows of ``world``, one of each id, and copies of them that no rule knows; some are of one instant."""
        unique = list({what.id: what for what in world.rows}.values())
        copies = [What(what.owner, what.attributes, f"conv_{number}") for number, what in enumerate(world.rows)]
        return [Placed(what, EPOCH + timedelta(seconds=self._rng.randrange(8))) for what in (*unique, *copies)]

    async def _stored(self, rows: Sequence[Placed], parents: Sequence[Placed]) -> None:
        """Puts ``rows`` in place of all others, among tombstones and another tenant's rows that look like them."""
        others = [
            (_copy(row, prefix), tenant, gone)
            for row, (prefix, tenant, gone) in product(rows[:6], (("t_", THEIRS, None), ("d_", TENANT, EPOCH)))
        ]
        every = [*((row, TENANT, None) for row in rows), *others]
        await self._connection.execute("DELETE FROM items")
        await self._connection.execute("DELETE FROM conversation_attributes")
        await self._connection.execute("DELETE FROM conversations")
        await self._connection.execute("TRUNCATE activity")
        await self._connection.executemany(
            """INSERT INTO conversations (id, tenant, owner, attributes, metadata, last_sequence, version, revision,
                   create_time, update_time, delete_time, active_time)
               VALUES ($1, $2, $3, $4, '{}', 0, 1, 1, $5, $5, $6, $7)""",
            [
                (
                    row.what.id,
                    tenant,
                    row.what.owner,
                    sorted(pairs(row.what.attributes)),
                    row.time,
                    gone,
                    _active_time(row.what.id),
                )
                for row, tenant, gone in every
            ],
        )
        await self._connection.execute(
            """INSERT INTO conversation_attributes (conversation_id, attribute, tenant, create_time, active_time)
               SELECT id, unnest(attributes), tenant, create_time, active_time FROM conversations"""
        )
        await self._connection.executemany(
            """INSERT INTO items (conversation_id, sequence, item_id, version, type, role, status, create_time, body)
               VALUES ($1, $2, $3, 1, 'message', 'user', '', $4, $5)""",
            [
                (row.what.id, number, item_id, row.time, item_id.encode())
                for row in parents
                for number, item_id in enumerate(ITEM_IDS, 1)
            ],
        )

    def _singletons_decided(self, world: World, access: Access) -> None:
        """Each action on the policy and on the tenant, which the plan alone decides."""
        for kind, action in product(("policy", "tenant"), SINGLETON_ACTIONS):
            permission = access.may(kind, action)
            expected = _allowed(world, access, kind, action, SINGLETON)
            self._compare(world, access, permission, {"": expected}, {"": isinstance(permission.plan, Always)})

    async def _decided(self, world: World, access: Access, rows: Sequence[Placed]) -> None:
        """Each action on each conversation, by the predicate that the statements carry."""
        permissions = [access.may("conversation", action) for action in ACTIONS]
        answers = [allowed(permission).label(permission.name) for permission in permissions]
        tenant = conversations.c.tenant == bindparam("tenant", type_=Text)
        statement = compile_statement(
            select(conversations.c.id, *answers).where(tenant, conversations.c.delete_time.is_(None)), "read"
        )
        found = {row["id"]: row for row in await self._database.fetch(statement, access.values)}
        self._same("rows", world, access, {row.what.id for row in rows}, set(found))
        for permission, action in zip(permissions, ACTIONS, strict=True):
            self.seen.plans[type(permission.plan).__name__] += 1
            expected = {row.what.id: _allowed(world, access, "conversation", action, row.what) for row in rows}
            self._compare(
                world, access, permission, expected, {key: row[permission.name] for key, row in found.items()}
            )

    async def _items_decided(self, world: World, access: Access, parents: Sequence[Placed]) -> None:
        """Each action on each item."""
        permissions = [access.may("item", action) for action in ACTIONS]
        answers = [item_allowed(each, items.c.item_id).label(each.name) for each in permissions]
        joined = select(conversations.c.id, items.c.item_id, *answers).join_from(
            conversations, items, items.c.conversation_id == conversations.c.id
        )
        rows = await self._database.fetch(compile_statement(joined, "read"), access.values)
        found = {(row["id"], row["item_id"]): row for row in rows}
        for permission, action in zip(permissions, ACTIONS, strict=True):
            self.seen.plans[type(permission.plan).__name__] += 1
            expected = {
                (row.what.id, item_id): _allowed(world, access, "item", action, _item(row.what, item_id))
                for row, item_id in product(parents, ITEM_IDS)
            }
            self._compare(
                world, access, permission, expected, {key: row[permission.name] for key, row in found.items()}
            )

    def _compare(
        self,
        world: World,
        access: Access,
        permission: Permission,
        expected: Mapping[Any, bool],
        found: Mapping[Any, bool],
    ) -> None:
        self.seen.decisions.update(expected.values())
        self._same(permission.name, world, access, expected, found)

    async def _listed(self, world: World, access: Access, rows: Sequence[Placed]) -> None:
        """The list, whole and in tiny pages, by ranges of indexes and without them."""
        keys = sorted(row.key for row in rows if _allowed(world, access, "conversation", "read", row.what))
        read = access.may("conversation", "read")
        if isinstance(read.plan, Never):
            self.seen.lists["never"] += 1
            self._same("list of nothing", world, access, [], keys)
            return
        cover = access.index_ranges
        self.seen.lists["covered" if cover else "whole"] += 1
        for descending in (False, True):
            expected = keys[::-1] if descending else keys
            whole, _ = await self._conversations.page(access, (), None, 1000, descending=descending)
            self._same("list", world, access, expected, _keys(whole))
            plain = statements.page(read, filters_owner=None, covered=False, descending=descending)
            after_time, after_id = (LATEST, "") if descending else (EARLIEST, "")
            values = {
                **access.values,
                "after_time": after_time,
                "after_id": after_id,
                "count": 1000,
                "page_bytes": 2**24,
            }
            self._same("plain list", world, access, expected, _keys(await self._database.fetch(plain, values)))
        await self._paged(world, access, keys)
        if self._database.layout.orders_by_activity:
            await self._listed_by_activity(world, access, keys)

    async def _listed_by_activity(self, world: World, access: Access, keys: list[tuple[datetime, str]]) -> None:
        """The list by activity, in pages, by ranges and without them: the same conversations in another order."""
        expected = sorted(((_active_time(key_id), key_id) for _, key_id in keys), reverse=True)
        read, values = access.demand("conversation", "read"), {**access.values, "page_bytes": 2**24, "count": 1000}
        plain = activity.page(read, filters_owner=None, covered=False)
        rows = await self._database.fetch(plain, {**values, "after_time": LATEST, "after_id": ""})
        self._same("plain list by activity", world, access, expected, _activity_keys(rows))
        for size in (1000, 1 + len(world.rows) // 7):
            found: list[tuple[datetime, str]] = []
            position, more = None, True
            while more:
                rows, more = await self._conversations.page(
                    access, (), position, size, descending=True, by_activity=True
                )
                found += _activity_keys(rows)
                position = found[-1] if found else None
            self._same("list by activity", world, access, expected, found)

    async def _paged(self, world: World, access: Access, keys: list[tuple[datetime, str]]) -> None:
        """Pages follow each other without a gap, and each says whether the list goes on."""
        size, descending = self._rng.randint(1, 4), self._rng.random() < 0.5
        expected = keys[::-1] if descending else keys
        position = None
        for start in range(0, max(1, len(expected)), size):
            rows, more = await self._conversations.page(access, (), position, size, descending=descending)
            page = _keys(rows)
            self._same("page", world, access, expected[start : start + size], page)
            self._same("end of the list", world, access, start + size < len(expected), more)
            self.seen.pages += 1
            position = page[-1] if page else None

    async def _got(self, world: World, access: Access, rows: Sequence[Placed]) -> None:
        """Some conversations by id, those of others and the deleted included, with all actions asked."""
        read = access.may("conversation", "read")
        asked = [access.may("conversation", action) for action in ACTIONS]
        statement = statements.get(read, *asked)
        for row in self._rng.sample(rows, 4):
            for row_id in (row.what.id, f"t_{row.what.id}"[:64], f"d_{row.what.id}"[:64]):
                found = await self._database.fetchrow(statement, {**access.values, "conversation_id": row_id})
                readable = row_id == row.what.id and _allowed(world, access, "conversation", "read", row.what)
                answers = {action: _allowed(world, access, "conversation", action, row.what) for action in ACTIONS}
                given = found and {each.name.partition("_")[2]: found[each.name] for each in asked}
                self._same(f"get {row_id}", world, access, answers if readable else None, given)

    async def _items_got(self, world: World, access: Access, parents: Sequence[Placed]) -> None:
        """Items of one conversation: listed, in tiny pages, one by one and by a list of ids."""
        if any(isinstance(access.may(kind, "read").plan, Never) for kind in ("conversation", "item")):
            return
        what = self._rng.choice(parents).what
        seen = _allowed(world, access, "conversation", "read", what)
        readable = [each for each in ITEM_IDS if seen and _allowed(world, access, "item", "read", _item(what, each))]
        size = self._rng.randint(1, 3)
        try:
            cursor, listed, more = None, [], True
            while more:
                page, more = await self._items.page(access, what.id, (), cursor, size, descending=False)
                listed += [each.body.decode() for each in page]
                cursor = page[-1].sequence if page else None
            self._same("items", world, access, readable if seen else None, listed)
        except ConversationNotFound:
            self._same("items", world, access, None if not seen else readable, None)
        self._same(
            "point", world, access, readable, [each for each in ITEM_IDS if await self._item(access, what, each)]
        )
        whole = await self._item_batch(access, what, readable) if readable else True
        self._same(
            "batch",
            world,
            access,
            (True, len(readable) == len(ITEM_IDS)),
            (whole, await self._item_batch(access, what, ITEM_IDS)),
        )

    async def _item(self, access: Access, what: What, item_id: str) -> bool:
        try:
            return (await self._items.get(access, what.id, item_id)).body.decode() == item_id
        except (ConversationNotFound, ItemNotFound):
            return False

    async def _item_batch(self, access: Access, what: What, item_ids: Sequence[str]) -> bool:
        try:
            return [each.body.decode() for each in await self._items.get_batch(access, what.id, item_ids)] == [
                *item_ids
            ]
        except (ConversationNotFound, ItemNotFound):
            return False

    def _same(self, name: str, world: World, access: Access, expected: Any, found: Any) -> None:
        if expected != found:
            principal = (access.principal.id, dict(access.principal.attributes))
            raise Mismatch(f"{name}\nexpected {expected!r}\nfound    {found!r}\n{principal}\n{world.rules}")


def _keys(rows: Iterable[asyncpg.Record]) -> list[tuple[datetime, str]]:
    return [(row["create_time"], row["id"]) for row in rows]


def _activity_keys(rows: Iterable[asyncpg.Record]) -> list[tuple[datetime, str]]:
    return [(row["active_time"], row["id"]) for row in rows]


def _active_time(conversation_id: str) -> datetime:
    """When a conversation of the proof was active: many at the same time, in another order than that of creation."""
    return EPOCH + timedelta(seconds=sum(conversation_id.encode()) % 5)


def _item(what: What, item_id: str) -> What:
    return What(what.owner, what.attributes, item_id)


def _allowed(world: World, access: Access, kind: str, action: str, what: What) -> bool:
    return reference.allowed(world.rules, who(access.principal), kind, action, what)


@asynccontextmanager
async def proof_on(url: str, rng: Random) -> AsyncIterator[Proof]:
    """A proof on the migrated, and otherwise empty, database at ``url``."""
    connection = await asyncpg.connect(url)
    try:
        async with verified_database(url, 1, Bounds(), unsafe_durability=True) as database:
            if not database.layout.is_distributed:
                await change_log.turn_on(url, timedelta(hours=1))
            yield Proof(database, connection, rng)
    finally:
        await connection.close()


@asynccontextmanager
async def _empty_database() -> AsyncIterator[str]:
    """A migrated database of its own: distributed with `CITUS_URL`, otherwise of a private PostgreSQL."""
    if coordinator := os.environ.get(CITUS):
        name = f"proof_{os.getpid()}"
        await make_distributed_database(coordinator, name)
        try:
            yield with_database(coordinator, name)
        finally:
            await drop_everywhere(coordinator, name)
        return
    with TemporaryDirectory() as name:
        Path(name).chmod(0o711)  # the server is another user when we are root
        async with run_embedded(Path(name) / "data") as private:
            await migrate(private.url)
            yield private.url


async def _main(seed: int, cases: int) -> None:
    async with _empty_database() as url, proof_on(url, Random(seed)) as proof:
        start = time.monotonic()
        seen = await proof.until(cases)
    seconds = time.monotonic() - start
    if problems := seen.problems():
        raise Mismatch("; ".join(problems))
    print(  # noqa: T201
        f"{seen.cases} decisions, {seen.pages} pages, {seconds:.0f} s: 0 mismatches. "
        f"allowed {seen.share(seen.decisions, True):.2f}; {dict(seen.plans)}; lists {dict(seen.lists)}"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Compares random policy decisions in SQL with a reference.")
    parser.add_argument("seed", type=int, nargs="?", default=SystemRandom().randrange(2**32), help="[random]")
    parser.add_argument("--cases", type=int, default=CASES, help=f"How many decisions. [{CASES}]")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)  # noqa: T201
    try:
        asyncio.run(_main(options.seed, options.cases))
    except Mismatch as mismatch:
        print(f"seed {options.seed}: {mismatch}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


if __name__ == "__main__":
    main()
