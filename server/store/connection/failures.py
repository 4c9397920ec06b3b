"""What a failure of the database means: two tables, by SQLSTATE and by exception.

PostgreSQL's errors are known by their SQLSTATE: by all five characters if the table has them, else by the class, which
is the first two (https://www.postgresql.org/docs/current/errcodes-appendix.html). Failures of the network and of the
driver are known by the class of their exception. What neither table has is a defect of this service.

Callers are answered UNAVAILABLE where another server or a later time helps, so that their service config retries.
"""

import errno
import re
import socket
import ssl
from dataclasses import dataclass, replace
from functools import cache
from typing import Self

import asyncpg

from server.errors import Conflict, DeadlineExceeded, StoreUnavailable
from server.store.sql.shard_functions import NOT_FORWARDED

_RESOLVER_CODES = {getattr(socket, name): name for name in dir(socket) if name.startswith("EAI_")}


_DUPLICATE_KEY = re.compile(r'duplicate key value violates unique constraint "(\w+?)(?:_\d+)?"')


class ConnectFailed(Exception):
    """No connection could be made; its cause says why. No statement was sent."""


class KeyTaken(Exception):
    """A statement would have stored a key that a row has already (SQLSTATE 23505); it has changed nothing.

    Attributes:
        constraint: The name of the unique constraint or index, as the schema has it; '' if it is not known.
    """

    def __init__(self, constraint: str) -> None:
        super().__init__(constraint)
        self.constraint = constraint


# What the driver raises when something is wrong with the database, or on the way to it.
DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, ConnectFailed)


@dataclass(frozen=True, slots=True)
class FailureRule:
    """What is done about one kind of failure.

    Attributes:
        reason: One word for logs and GetStatus; docs/operations.md says what to do about each.
        metric: The label ``reason`` of `conversations_statement_failures_total`.
        error: What the caller is answered.
        retry: Whether another attempt at once may succeed.
        renew: Whether the pool's connections are replaced: where one was lost, others may be that do not show it yet.
        undone: Whether the statement has certainly changed nothing.
        probe: Whether the failure may concern every statement, so that readiness probes the database at once.
    """

    reason: str
    metric: str = "server"
    error: type[StoreUnavailable | Conflict | DeadlineExceeded] = StoreUnavailable
    retry: bool = False
    renew: bool = False
    undone: bool = False
    probe: bool = False


def _lost(reason: str, *, undone: bool = False) -> FailureRule:
    """The connection is gone; over a new one the statement may succeed."""
    return FailureRule(reason, "connection", retry=True, renew=True, undone=undone, probe=True)


def _refused(reason: str, *, retry: bool = False) -> FailureRule:
    """No connection can be made, so nothing was sent; it may be so for every new one."""
    return FailureRule(reason, "connection", retry=retry, undone=True, probe=True)


_DEFECT = None  # not a state of the database: the exception is raised as it is
_CONFLICT = FailureRule("conflict", "race", Conflict, retry=True, undone=True)
_SLOW = FailureRule("timeout", "timeout", DeadlineExceeded, undone=True)
_READ_ONLY = FailureRule("read_only", retry=True, renew=True, undone=True, probe=True)
DISK_FULL = FailureRule("disk_full", undone=True, probe=True)
TOO_MANY_CONNECTIONS = _refused("too_many_connections", retry=True)  # over one of those that there are

BY_SQLSTATE: dict[str, FailureRule | None] = {
    "08": _lost("connection_lost"),
    "08P01": _lost("connection_lost"),  # a protocol violation: PgBouncer ends what it does not like with it
    "23": _DEFECT,  # integrity constraints are explained by the store, statement by statement
    "25006": _READ_ONLY,  # a standby, or a primary that was demoted
    "25P03": _lost("connection_lost"),  # idle_in_transaction_session_timeout, transaction_timeout: the session ended
    "25P04": _lost("connection_lost"),
    "26": _lost("statement_forgotten", undone=True),  # the session is not the one that prepared the statement
    "28": _refused("login_refused"),
    "3D": _refused("no_such_database"),
    "40": _CONFLICT,
    "40003": _lost("outcome_unknown"),
    "42501": FailureRule("permission_denied", undone=True),
    "53": FailureRule("out_of_resources", undone=True),
    "53100": DISK_FULL,
    "53200": FailureRule("out_of_memory", undone=True),
    "53300": TOO_MANY_CONNECTIONS,
    "55": FailureRule("not_in_required_state", undone=True),
    "55P03": _SLOW,  # lock_timeout
    "57": _lost("shutting_down"),
    "57014": _SLOW,  # statement_timeout
    "57P03": _refused("starting_up"),
    "57P04": _lost("no_such_database"),
    "58": FailureRule("system_error", undone=True, probe=True),
    NOT_FORWARDED: FailureRule("not_forwarded", "connection", retry=True, renew=True, undone=True),
    "XX": FailureRule("server_error", undone=True),
    "XX001": _DEFECT,  # corrupted data: no other time helps, somebody has to look
    "XX002": _DEFECT,
}

# The first one that matches: subclasses stand before their base.
BY_EXCEPTION: tuple[tuple[type[BaseException], FailureRule | None], ...] = (
    (asyncpg.ClientConfigurationError, _DEFECT),
    (asyncpg.TargetServerAttributeNotMatched, _READ_ONLY),  # every host is a standby
    (asyncpg.InterfaceError, _lost("connection_lost")),
    (asyncpg.InternalClientError, _lost("connection_lost")),
    (TimeoutError, FailureRule("no_answer", "timeout", renew=True, probe=True)),
    (socket.gaierror, _refused("dns")),
    (ssl.SSLError, _refused("tls")),
    (ConnectionRefusedError, _refused("connection_refused")),
    (FileNotFoundError, _refused("connection_refused")),  # no socket in the folder
    (ConnectionResetError, _lost("connection_lost")),
    (ConnectionAbortedError, _lost("connection_lost")),
    (BrokenPipeError, _lost("connection_lost")),
    (ConnectionError, _refused("not_postgresql")),  # asyncpg raises the bare class for an odd answer to its SSLRequest
    (OSError, _refused("unreachable")),
)


# A coordinator answers so when it cannot reach a worker; its own session goes on.
WORKER_LOST = FailureRule("worker_lost", "connection", retry=True)
# How Citus ends the context of an error that a worker has raised: with its address.
_AT_WORKER = re.compile(r"^while executing command on \S+:\d+\Z", re.MULTILINE)


def find_rule(error: BaseException) -> FailureRule | None:
    """Returns the rule for an exception of the driver; None for a defect, or for the store to explain."""
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate:
        return WORKER_LOST if _is_lost_worker(error) else _find_rule_of_state(error)
    return next((rule for kind, rule in BY_EXCEPTION if isinstance(error, kind)), None)


def _find_rule_of_state(error: asyncpg.PostgresError) -> FailureRule | None:
    rule = BY_SQLSTATE.get(error.sqlstate, BY_SQLSTATE.get(error.sqlstate[:2]))
    is_of_worker = _AT_WORKER.search(getattr(error, "context", None) or "")
    return _at_worker(rule) if rule and is_of_worker else rule


@cache
def _at_worker(rule: FailureRule) -> FailureRule:
    """``rule`` for a worker: the session at the coordinator goes on, and so do the statements of other workers."""
    return replace(rule, reason=f"worker_{rule.reason}", renew=False, probe=False)


def _is_lost_worker(error: asyncpg.PostgresError) -> bool:
    """Whether a session tells of a lost connection and goes on: so it was not its own."""
    is_lost = error.sqlstate[:2] == "08" and error.sqlstate != "08P01"
    return is_lost and getattr(error, "severity_en", None) == "ERROR"


def find_taken_key(error: BaseException) -> KeyTaken | None:
    """Returns the unique constraint that a statement has violated, if that is what ``error`` says.

    A sharded database answers for its shards: it may leave out SQLSTATE and name, and the name in its message then ends
    with the number of a shard.
    """
    if not isinstance(error, asyncpg.PostgresError) or error.sqlstate not in {"23505", "XX000"}:
        return None
    named = getattr(error, "constraint_name", None)
    if named:
        return KeyTaken(named)
    if found := _DUPLICATE_KEY.match(str(error)):
        return KeyTaken(found[1])
    return KeyTaken("") if error.sqlstate == "23505" else None


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt.

    Attributes:
        cause: The exception of the driver.
        rule: What to do about it; None for a defect, or for the store to explain.
        undone: Whether the statement has certainly changed nothing: it was not sent, or the server has undone it.
    """

    cause: BaseException
    rule: FailureRule | None
    undone: bool

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Returns what is known of an exception of the driver, or of a `ConnectFailed`."""
        sent = not isinstance(error, ConnectFailed)
        cause = error if sent else error.__cause__ or error
        rule = find_rule(cause)
        return cls(cause, rule, not sent or (rule is not None and rule.undone))


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the database cannot be used, without any text of an exception: that may hold names and addresses.

    Attributes:
        reason: As `FailureRule.reason`; "unexpected" for what has no rule.
        error: The class of the exception.
        code: An SQLSTATE, the name of an errno or of a resolver's error, or OpenSSL's word; '' if there is none.
    """

    reason: str
    error: str = ""
    code: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Returns what may be told of an exception."""
        failure = Failure.of(error)
        reason = failure.rule.reason if failure.rule else "unexpected"
        return cls(reason, type(failure.cause).__name__, _code_of(failure.cause))

    def __str__(self) -> str:
        """The reason, with class and code in brackets."""
        details = ", ".join(filter(None, (self.error, self.code)))
        return f"{self.reason} ({details})" if details else self.reason

    @property
    def sentence(self) -> str:
        """The same as a sentence for operators."""
        return f"The database cannot be used now: {self}."


def _code_of(error: BaseException) -> str:
    match error:
        case asyncpg.PostgresError():
            return error.sqlstate or ""
        case socket.gaierror():
            return _RESOLVER_CODES.get(error.errno, "")
        case ssl.SSLError():
            return getattr(error, "reason", None) or ""
        case OSError():
            return errno.errorcode.get(error.errno or 0, "")
        case _:
            return ""
