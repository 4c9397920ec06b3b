"""Measures ListConversations for a caller who may see 20 of very many conversations.

``python -m bench.list_cost`` fills a private PostgreSQL with 10,000 and with
1,000,000 conversations, of which 20 are the caller's by owner and 20 by a team,
and times the one statement under the default policy; newest and oldest alike.
"""

import argparse
import asyncio
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg

from server.authorization.access import Access, AccessCache
from server.policy.principal import Principal
from server.policy.rules import DEFAULT
from server.store.connection.bounds import Bounds
from server.store.connection.opening import open_database
from server.store.conversations import ConversationStore
from server.store.embedded import run_embedded
from server.store.migrate import migrate

_FILL = """
    INSERT INTO conversations
        (id, tenant, owner, attributes, metadata, last_sequence, version, revision, create_time, update_time)
    SELECT 'conv_' || lpad(n::text, 48, '0'), '',
        CASE WHEN n % $2 = 7 THEN 'me' ELSE 'user-' || n % 5000 END,
        CASE WHEN n % $2 = 11 THEN ARRAY['teams=mine'] ELSE ARRAY['teams=team-' || n % 3000] END,
        '{}', 0, 1, 1, timestamptz '2026-01-01' + n * interval '1 second', timestamptz '2026-01-01'
    FROM generate_series(1, $1::int) AS n"""
_INDEX = """
    INSERT INTO conversation_attributes (conversation_id, attribute, tenant, create_time)
    SELECT id, unnest(attributes), tenant, create_time FROM conversations"""
CALLERS = {
    "by owner": Principal(tenant="", id="me"),
    "by team": Principal(tenant="", id="somebody", attributes={"teams": frozenset({"mine"})}),
    "by owner or team": Principal(tenant="", id="me", attributes={"teams": frozenset({"mine"})}),
}
SEEN = 20


async def fill(url: str, rows: int, *, analyzed: bool = True) -> None:
    """Creates ``rows`` conversations, 20 at least.

    ``analyzed``: whether PostgreSQL has statistics of them afterwards.
    """
    connection = await asyncpg.connect(url)
    await connection.execute("TRUNCATE conversations, conversation_attributes, activity")
    await connection.execute(_FILL, rows, rows // SEEN)
    await connection.execute(_INDEX)
    if analyzed:
        await connection.execute("VACUUM ANALYZE conversations, conversation_attributes, activity")
    await connection.close()


async def timed(store: ConversationStore, access: Access) -> tuple[int, float]:
    """Returns how many conversations the caller sees, and the median time of a first page in milliseconds."""
    found: list[float] = []
    for _ in range(60):
        began = time.perf_counter()
        rows, _ = await store.page(access, (), None, 100, descending=True)
        found.append((time.perf_counter() - began) * 1e3)
    return len(rows), statistics.median(found[20:])


async def measure(sizes: list[int]) -> None:
    """Prints a line for each caller."""
    accesses = AccessCache(DEFAULT)
    times: dict[str, list[float]] = {}
    with TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        async with run_embedded(Path(name) / "data") as private:
            await migrate(private.url)
            for size in sizes:
                await fill(private.url, size)
                async with open_database(private.url, 2, Bounds()) as database:
                    for who, principal in CALLERS.items():
                        seen, median = await timed(ConversationStore(database, 2**20), accesses.of(principal))
                        times.setdefault(who, []).append(median)
                        print(f"{who:18} {seen:4} of {size:9,} conversations: {median:7.3f} ms")
    for who, (small, *_, large) in times.items():
        print(f"{who:18} ratio {large / small:.2f}")


def main() -> None:
    """Reads the flags and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 1_000_000])
    asyncio.run(measure(parser.parse_args().sizes))


if __name__ == "__main__":
    main()
