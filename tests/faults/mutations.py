"""Defects put into a copy of the service, each of which a row has to see: a row that sees none shows nothing."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.faults.server import ROOT


@dataclass(frozen=True)
class Change:
    """Text of a file below `server/`, which is there exactly once, and what stands there instead."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    """A defect, and the row that has to see it.

    Attributes:
        sees: Words of the violation.
    """

    name: str
    row: str
    sees: str
    changes: tuple[Change, ...]


class MutationStale(Exception):
    """The code has changed, so that a mutation cannot be put into it."""


def mutate(mutation: Mutation, folder: Path) -> Path:
    """Puts a defect into a copy of the package `server` in ``folder``; the folder.

    Raises:
        MutationStale: Its text is not there, or more than once.
    """
    texts = changed_files(mutation)
    shutil.copytree(ROOT / "server", folder / "server", ignore=shutil.ignore_patterns("__pycache__"))
    for file, text in texts.items():
        (folder / "server" / file).write_text(text, encoding="utf-8")
    return folder


def changed_files(mutation: Mutation) -> dict[str, str]:
    """The files below `server/` that a mutation changes, as they are then.

    Raises:
        MutationStale: Its text is not there, or more than once.
    """
    texts: dict[str, str] = {}
    for change in mutation.changes:
        text = texts.get(change.file) or (ROOT / "server" / change.file).read_text(encoding="utf-8")
        if (count := text.count(change.old)) != 1:
            raise MutationStale(f"{mutation.name}: server/{change.file} has {change.old!r} {count} times, not once")
        texts[change.file] = text.replace(change.old, change.new)
    return texts


_RESERVE, _APPENDS = "store/sql/idempotency.py", "store/sql/appends.py"
_ITEMS, _CONVERSATIONS = "store/sql/items.py", "store/sql/conversations.py"
_DATABASE, _FAILURES = "store/connection/database.py", "store/connection/failures.py"
_CONNECTIONS = "store/connection/warm_connections.py"
_SERVICER = "services/conversations.py"
_RESPONSES, _ARRIVALS = "store/response_budget.py", "interceptors/slow_reads.py"

# Request ids are checked and not kept: what is repeated is done again.
_FORGETFUL = (
    Change(_RESERVE, ").select_from(written),", ').select_from(written).where(literal_column("false")),'),
    Change(
        _APPENDS,
        "insert(requests).from_select(list(columns), query)",
        "insert(requests).from_select(list(columns), query.where(rows.c.item_count != rows.c.item_count))",
    ),
)

MUTATIONS = (
    # What is written.
    Mutation("request ids are not kept", "callers' answers lost", "times, under a request_id", _FORGETFUL),
    Mutation("request ids are not kept", "one request_id on two servers at once", "under a request_id", _FORGETFUL),
    Mutation(
        "a write without request_id is repeated",
        "answers of commits lost",
        "was refused (ALREADY_EXISTS ITEM_EXISTS) and is there",
        (Change(_DATABASE, "if not (repeatable or failure.undone):", "if failure is None:"),),
    ),
    Mutation(
        "an unknown outcome is told as if nothing was written",
        "answers of commits lost",
        "was refused (UNAVAILABLE STORE_UNAVAILABLE) and is there",
        (Change(_DATABASE, "raise OutcomeUnknown from failure.cause", "raise StoreUnavailable from failure.cause"),),
    ),
    Mutation(
        "commits do not wait for the disk",
        "postmaster killed",
        "was acknowledged and is lost",
        (
            Change("store/connection/bounds.py", '"jit": "off",', '"jit": "off", "synchronous_commit": "off",'),
            Change(
                "store/connection/opening.py", "if lax and not unsafe_durability:", "if not lax and unsafe_durability:"
            ),
        ),
    ),
    Mutation(
        "a place is left out",
        "server killed",
        "sequences are not 1 to",
        (Change(_ITEMS, "(_c.last_sequence - size).label", "(_c.last_sequence - size + _one).label"),),
    ),
    Mutation(
        "expected_last_sequence is not checked",
        "backends terminated",
        "and stands at",
        (
            Change(_ITEMS, '_c.last_sequence == bindparam("expected"', '_c.last_sequence >= bindparam("expected"'),
            Change(_APPENDS, "_c.last_sequence == groups.c.expected", "_c.last_sequence >= groups.c.expected"),
        ),
    ),
    Mutation(
        "etags are not checked",
        "backends terminated",
        "two updates under one etag",
        (Change(_CONVERSATIONS, "_c.revision == expected", "_c.revision >= expected"),),
    ),
    # What is read.
    Mutation(
        "a page begins where the last one ended",
        "server killed",
        "are not what is stored",
        (Change(_ITEMS, "else _i.sequence > position", "else _i.sequence >= position"),),
    ),
    Mutation(
        "a watch begins where the last one ended",
        "watches: two servers restarted",
        "was told of an item twice",
        (Change("store/sql/watches.py", '_i.sequence > bindparam("sequence"', '_i.sequence >= bindparam("sequence"'),),
    ),
    Mutation(
        "a watch passes over deletions",
        "watches: two servers restarted",
        "was not told of",
        (
            Change(
                "store/sql/watches.py",
                "tuple_(_i.version, _i.sequence) > position)",
                "tuple_(_i.version, _i.sequence) > position, literal_column('false'))",
            ),
        ),
    ),
    Mutation(
        "the log is read beyond the transactions that have ended",
        "watches: two servers restarted",
        "was not told of",
        (Change("store/sql/changes.py", "tuple_(*_KEY) > key, _g.position < _horizon)", "tuple_(*_KEY) > key)"),),
    ),
    Mutation(
        "tenants are not told apart",
        "two tenants",
        "was done to a conversation of",
        (
            Change(
                "store/sql/visibility.py",
                'own = table.c.tenant == parameter("tenant", Text)',
                'own = parameter("tenant", Text) == parameter("tenant", Text)',
            ),
        ),
    ),
    Mutation(
        "page tokens are everybody's",
        "two tenants",
        "used a page token of",
        (
            Change(
                _SERVICER,
                "            _ITEMS,\n            access.principal.tenant,\n            access.principal.id,\n"
                "            request.conversation_id,\n",
                "            _ITEMS,\n",
            ),
        ),
    ),
    Mutation(
        "content is logged",
        "server killed",
        "holds content",
        (
            Change(
                _SERVICER,
                "reservation_for, Method.CREATE_ITEMS, request)",
                "reservation_for, Method.CREATE_ITEMS, request)\n"
                "        __import__('logging').warning(str(request.items[0].item))",
            ),
        ),
    ),
    # How a sick database is told of.
    Mutation(
        "readiness is never false",
        "postmaster killed",
        "readiness was true",
        (Change("transport/readiness.py", "await self._set_ready(ready=False)", "await asyncio.sleep(0)"),),
    ),
    Mutation(
        "readiness is looked at each ten seconds",
        "store's network frozen",
        "readiness was",
        (Change("transport/readiness.py", "_PROBE_SECONDS = ", "_PROBE_SECONDS = 10.0 + "),),
    ),
    Mutation(
        "a read-only database is unexpected",
        "default_transaction_read_only",
        "INTERNAL must never be told",
        (Change(_FAILURES, '    "25006": _READ_ONLY,', '    "25099": _READ_ONLY,'),),
    ),
    Mutation(
        "a full disk is unexpected",
        "disk full",
        "INTERNAL must never be told",
        (Change(_FAILURES, '    "53100": DISK_FULL,\n', '    "53100": _DEFECT,\n'),),
    ),
    Mutation(
        "connections to an old primary are kept",
        "failover, old primary read-only",
        "did not learn how a write ended",
        (
            Change(_CONNECTIONS, "await self.pool.expire_connections()", "return"),
            Change(_DATABASE, "            self._connector.terminate_all()\n", ""),
        ),
    ),
    Mutation(
        "statements wait for a connection without end",
        "pool exhausted",
        "no call was refused",
        (Change("store/connection/bounds.py", "acquire: float = 1.0", "acquire: float = 30.0"),),
    ),
    Mutation(
        "a shared statement waits for a locked row",
        "one conversation locked",
        "an append to another conversation took",
        (Change("store/append_batching.py", "groups, skip_locked=True)", "groups, skip_locked=False)"),),
    ),
    # How the process behaves.
    Mutation(
        "a worker that ended is not started again",
        "one of two workers killed",
        "was not started again",
        (Change("app/supervisor.py", "            await asyncio.sleep(pause)\n", "            return\n"),),
    ),
    Mutation(
        "the embedded PostgreSQL is not started again",
        "embedded PostgreSQL killed",
        "were not acknowledged within",
        (Change("store/embedded/shared_server.py", "await self._restart_if_ended()", "self.server.pid()"),),
    ),
    Mutation(
        "a drain aborts calls at once",
        "rolling restart",
        "CANCELLED",
        (
            Change("transport/shutdown.py", "    await asyncio.sleep(HOLD_SECONDS)\n", ""),
            Change("transport/shutdown.py", "each.stop(grace)", "each.stop(None)"),
        ),
    ),
    Mutation(
        "a request that cannot be parsed is unexpected",
        "5,000 fuzzed",
        "INTERNAL",
        (Change("interceptors/decode.py", "except DecodeError:", "except ZeroDivisionError:"),),
    ),
    # What a caller can make it hold.
    Mutation(
        "responses that nobody takes are not counted",
        "400 answers that nobody takes",
        "the server grew to",
        (
            Change(_RESPONSES, "if full or self._per_caller[waiter.caller] + waiter.cost > ", "if waiter.cost > "),
            Change(_RESPONSES, "elif self.used + waiter.cost > self._limit:", "elif waiter.cost > self._limit:"),
        ),
    ),
    Mutation(
        "requests arrive without a bound",
        "100 times 15 MiB by a caller",
        "the server grew to",
        (
            Change("interceptors/decode.py", "_ARRIVING = 16 ", "_ARRIVING = 1600 "),
            Change("interceptors/decode.py", "_BODIES = 2 ", "_BODIES = 200 "),
            Change(_ARRIVALS, "bool(late or self._short) and self._memory.is_short()", "False"),
        ),
    ),
    Mutation(
        "requests that have to be small arrive without a bound",
        "100 times 15 MiB for health by a stranger",
        "the server grew to",
        (
            Change(
                "interceptors/decode.py",
                "await self._slow_reads.read_small(context, lambda: _read(context))",
                "await _read(context)",
            ),
        ),
    ),
    Mutation(
        "parts of messages of streams have no bound",
        "100 streams with 15 MiB of a message",
        "the server grew to",
        (Change("interceptors/stream_reads.py", "streams.most_common(1):", "streams.most_common(0):"),),
    ),
    Mutation(
        "calls wait without a bound",
        "10 times the calls that it can answer",
        "goodput is",
        (Change("transport/server.py", "_PENDING_CALLS = 3 ", "_PENDING_CALLS = 3000 "),),
    ),
    Mutation(
        "gRPC refuses calls before its queue is full",
        "HTTP/2 rapid resets",
        "CANCELLED",
        (
            Change(
                "transport/server.py",
                '("grpc.server.max_pending_requests", pending)',
                '("grpc.server.max_pending_requests", 16)',
            ),
        ),
    ),
    Mutation(
        "values in JSON are not counted",
        "15 MiB of nested JSON",
        "a health check took",
        (Change("items/text.py", "MAX_VALUES = 100_000 ", "MAX_VALUES = 1_000_000_000 "),),
    ),
    # The HTTP edge.
    Mutation(
        "the key of a request over HTTP is not read",
        "HTTP: callers leave a third",
        "times, under a request_id",
        (Change("http/edge.py", 'request_id_of(context.header("Idempotency-Key"))', '""'),),
    ),
    Mutation(
        "bodies over HTTP take no room in the budget",
        "HTTP: 14 MiB, 30 at once",
        "the server grew to",
        (
            Change("http/body.py", "room.grow(self._size - room.size)", "pass"),
            Change("http/body.py", "slow.begin()", "slow.count += 1"),
        ),
    ),
)
