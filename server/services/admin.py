"""AdminService: how this process is, and the few things that are turned while it runs."""

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
from google.protobuf.timestamp_pb2 import Timestamp

from server import __version__
from server.authorization.policy_file import PolicyFile
from server.interceptors.chain import Context
from server.interceptors.drain_gate import DrainGate
from server.observability import logs
from server.settings.addresses import Address
from server.store.connection.database import Database
from server.store.migrate import HEAD
from server.transport.readiness import Readiness

log = structlog.get_logger(__name__, log="audit")  # what operators do is logged at any level

_NAMES = {number: name.removeprefix("LEVEL_").lower() for name, number in pb.Level.items()}
_LEVELS = {name: pb.Level.ValueType(number) for number, name in _NAMES.items()}


@dataclass(frozen=True)
class Process:
    """What there is to tell of."""

    worker: int
    addresses: tuple[Address, ...]
    running: DrainGate
    readiness: Readiness
    database: Database
    policy: PolicyFile
    reload: Callable[[], None]


class AdminServicer(AdminServiceServicer):
    """Answers from memory."""

    def __init__(self, process: Process, log_level: str) -> None:
        """``log_level``: the configured one."""
        self._process = process
        self._level = LogLevel(log_level)
        self._start, self._start_time = time.monotonic(), datetime.now(UTC)

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.Status:
        """How the process is."""
        it = self._process
        return pb.Status(
            version=__version__,
            start_time=_timestamp(self._start_time),
            uptime=_duration(time.monotonic() - self._start),
            worker=it.worker,
            pid=os.getpid(),
            ready=it.readiness.ready and not it.running.draining.is_set(),
            waits_for=it.readiness.waits_for,
            draining=it.running.draining.is_set(),
            listeners=map(str, it.addresses),
            calls=it.running.count,
            pool=pb.Pool(size=it.database.size, in_use=it.database.in_use),
            schema_revision=HEAD,
            policy=_policy(it.policy),
        )

    async def GetLogLevel(self, request: pb.GetLogLevelRequest, context: Context) -> pb.LogLevel:
        """Which lines are logged."""
        return self._level.told()

    async def SetLogLevel(self, request: pb.SetLogLevelRequest, context: Context) -> pb.LogLevel:
        """Changes that."""
        duration = request.duration.ToTimedelta() if request.HasField("duration") else None
        self._level.set(_NAMES[request.level], duration)
        return self._level.told()

    async def Reload(self, request: pb.ReloadRequest, context: Context) -> pb.ReloadResponse:
        """As SIGHUP."""
        log.info("reload asked for")
        self._process.reload()
        return pb.ReloadResponse()


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


def _policy(file: PolicyFile) -> pb.Policy:
    policy = file.accesses.policy
    return pb.Policy(digest=policy.digest, source=policy.source, reloads=file.reloads, refused=file.refused)


class LogLevel:
    """The level of the log, which may be another than the configured one, for a while or for good."""

    def __init__(self, configured: str) -> None:
        self._configured = configured
        self._expiry: asyncio.TimerHandle | None = None
        self._expire_time: datetime | None = None

    def told(self) -> pb.LogLevel:
        """What it is, and what will become of it."""
        expire_time = _timestamp(self._expire_time) if self._expire_time else None
        return pb.LogLevel(level=_LEVELS[logs.level()], configured=_LEVELS[self._configured], expire_time=expire_time)

    def set(self, level: str, duration: timedelta | None) -> None:
        """Changes it, until ``duration`` has passed or for good."""
        self._end()
        self._turn(level)
        if duration is not None:
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_later(duration.total_seconds(), self._expired)
            self._expire_time = datetime.now(UTC) + duration

    def _expired(self) -> None:
        self._end()
        self._turn(self._configured)

    def _end(self) -> None:
        if self._expiry:
            self._expiry.cancel()
        self._expiry = self._expire_time = None

    def _turn(self, level: str) -> None:
        was = logs.level()
        logs.set_level(level)
        log.warning("log level changed", level_now=level, was=was)  # a line has a `level` of its own
