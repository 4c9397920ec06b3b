"""AdminService: the status of this process, and what operators change while it runs."""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from conversations.admin.v1 import admin_service_pb2 as pb
from conversations.admin.v1.admin_service_pb2_grpc import AdminServiceServicer
from google.protobuf.duration_pb2 import Duration

from server import __version__
from server.authorization.policy_file import PolicyFile
from server.interceptors.chain import Context
from server.interceptors.drain_gate import DrainGate
from server.observability import logs
from server.services.messages import timestamp
from server.settings.addresses import Address
from server.store.connection.database import Database
from server.store.connection.outage import Outage
from server.store.migrate import HEAD
from server.transport.readiness import Readiness

log = structlog.get_logger(__name__, log="audit")  # what operators change is logged at any level

_NAMES = {number: name.removeprefix("LEVEL_").lower() for name, number in pb.Level.items()}
_LEVELS = {name: pb.Level.ValueType(number) for number, name in _NAMES.items()}


@dataclass(frozen=True)
class Process:
    """The parts of this process that the admin service reads."""

    worker: int  # number of the worker, from 0
    addresses: tuple[Address, ...]
    drain_gate: DrainGate
    readiness: Readiness
    database: Database
    policy: PolicyFile
    reload: Callable[[], None]


class AdminServicer(AdminServiceServicer):
    """Answers from memory, whether the database can be reached or not.

    Args:
        process: What is read.
        log_level: The configured one.
    """

    def __init__(self, process: Process, log_level: str) -> None:
        self._process = process
        self._level = LogLevel(log_level)
        self._start, self._start_time = time.monotonic(), datetime.now(UTC)

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.Status:
        """Returns the status of the process."""
        process = self._process
        return pb.Status(
            version=__version__,
            start_time=timestamp(self._start_time),
            uptime=_duration(time.monotonic() - self._start),
            worker=process.worker,
            pid=os.getpid(),
            ready=process.readiness.ready and not process.drain_gate.draining.is_set(),
            waits_for=process.readiness.waits_for,
            draining=process.drain_gate.draining.is_set(),
            listeners=map(str, process.addresses),
            calls=process.drain_gate.running.count,
            pool=pb.Pool(size=process.database.size, in_use=process.database.in_use),
            schema_revision=HEAD,
            policy=_policy(process.policy),
            layout=process.database.layout.name if process.database.answered else "",
            database_problem=_database_problem(process.database.outage.current),
        )

    async def GetLogLevel(self, request: pb.GetLogLevelRequest, context: Context) -> pb.LogLevel:
        """Returns the level of the log."""
        return self._level.message()

    async def SetLogLevel(self, request: pb.SetLogLevelRequest, context: Context) -> pb.LogLevel:
        """Sets the level, for `duration` if one is given, else until the process ends."""
        duration = request.duration.ToTimedelta() if request.HasField("duration") else None
        self._level.set(_NAMES[request.level], duration)
        return self._level.message()

    async def Reload(self, request: pb.ReloadRequest, context: Context) -> pb.ReloadResponse:
        """Reloads policy and TLS files, as SIGHUP does."""
        log.info("reload asked for")
        self._process.reload()
        return pb.ReloadResponse()


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


def _policy(file: PolicyFile) -> pb.Policy:
    policy = file.accesses.policy
    return pb.Policy(digest=policy.digest, source=policy.source, reloads=file.reloads, refused=file.refused)


def _database_problem(outage: Outage | None) -> pb.DatabaseProblem | None:
    if outage is None:
        return None
    problem = outage.problem
    return pb.DatabaseProblem(
        reason=problem.reason,
        error=problem.error,
        code=problem.code,
        start_time=timestamp(datetime.fromtimestamp(outage.start_time, UTC)),
        failures=outage.failures,
    )


class LogLevel:
    """The level of the log: the configured one, or another for a while or until the process ends."""

    def __init__(self, configured: str) -> None:
        self._configured = configured
        self._expiry: asyncio.TimerHandle | None = None
        self._expire_time: datetime | None = None

    def message(self) -> pb.LogLevel:
        """Returns the level, the configured one, and when it will be that again."""
        expire_time = timestamp(self._expire_time) if self._expire_time else None
        return pb.LogLevel(level=_LEVELS[logs.level()], configured=_LEVELS[self._configured], expire_time=expire_time)

    def set(self, level: str, duration: timedelta | None) -> None:
        """Sets the level until ``duration`` has passed; without one, until the process ends."""
        self._cancel_expiry()
        self._change(level)
        if duration is not None:
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_later(duration.total_seconds(), self._expire)
            self._expire_time = datetime.now(UTC) + duration

    def _expire(self) -> None:
        self._cancel_expiry()
        self._change(self._configured)

    def _cancel_expiry(self) -> None:
        if self._expiry:
            self._expiry.cancel()
        self._expiry = self._expire_time = None

    def _change(self, level: str) -> None:
        was = logs.level()
        logs.set_level(level)
        log.warning("log level changed", level_now=level, was=was)  # `level` is the severity of the line
