"""Log lines: the access log, the level while the service runs, and the lines of libraries."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from tests.support.build import create, get
from tests.support.commands import forked_command
from tests.support.service import Service

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "generated")))}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
GET = "/conversations.v1.ConversationsService/GetConversation"


def printed(script: str, *arguments: str) -> list[str]:
    """The lines that a script logs."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, env=ENVIRONMENT, check=False, timeout=60
    )
    assert (0, b"") == (done.returncode, done.stdout), done.stderr.decode()
    return done.stderr.decode().removesuffix("\n").split("\n")


@asynccontextmanager
async def started(url: str, folder: Path, **settings: str) -> AsyncIterator[Path]:
    """A process that serves a socket in ``folder`` for a proxy; its standard error."""
    own = {
        "listen": f"unix:{folder}/s",
        "database_url": url,
        "identity": "proxy",
        "log_format": "json",
        "purge_every_minutes": "0",
        **settings,
    }
    environment = ENVIRONMENT | {f"CONVERSATIONS_{name.upper()}": value for name, value in own.items()}
    errors = folder / "errors"
    with errors.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *forked_command(), stdout=asyncio.subprocess.PIPE, stderr=file, env=environment
        )
        assert process.stdout is not None
        assert b"Conversation Service on" in await process.stdout.readline(), errors.read_text()
        try:
            yield errors
        finally:
            process.terminate()
            await process.wait()


async def calls(folder: Path) -> str:
    """A few calls of different ends; the id that was made."""
    options = [("grpc.default_authority", "localhost")]
    who = (("x-principal", "alice"), ("x-tenant", "acme"))
    async with grpc.aio.insecure_channel(f"unix:{folder}/s", options=options) as channel:
        stub = ConversationsServiceStub(channel)
        made = await stub.CreateConversation(create(metadata={"k": "secret"}), metadata=who)
        await stub.GetConversation(get(made.id), metadata=(*who, ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")))
        for metadata, name in ((who, "conv_none"), ((), made.id)):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.GetConversation(get(name), metadata=metadata)
        await HealthStub(channel).Check(HealthCheckRequest())
    return str(made.id)


async def test_a_line_for_each_call(service: Service, tmp_path: Path) -> None:
    """Method, code, time, caller, address, trace and an id of its own; none for health, and no content."""
    async with started(service.url, tmp_path, access_log="true") as errors:
        await calls(tmp_path)
    text = errors.read_text()
    assert "secret" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    own = [line for line in lines if line.get("log") == "access"]
    common = {
        "log": "access",
        "event": "call",
        "level": "info",
        "peer": "unix:",
        "tenant": "acme",
        "principal": "alice",
    }
    expected = [
        {**common, "method": GET.replace("Get", "Create"), "code": "OK"},
        {**common, "method": GET, "code": "OK", "trace": TRACE},
        {**common, "method": GET, "code": "NOT_FOUND"},
        {**common, "method": GET, "code": "UNAUTHENTICATED", "tenant": "", "principal": ""},
    ]
    assert expected == [
        {name: value for name, value in line.items() if name not in ("timestamp", "ms", "call")} for line in own
    ]
    assert 4 == len({line["call"] for line in own})
    assert all(0 < line["ms"] < 30_000 for line in own)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["timestamp"]) for line in lines)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, []),
        ({"log_level": "debug"}, ["debug"] * 4),
        ({"access_log": "true", "log_level": "warning"}, []),
        ({"access_log": "true", "log_level": "debug"}, ["info"] * 4),
    ],
)
async def test_which_calls_have_lines(
    service: Service, tmp_path: Path, settings: dict[str, str], expected: list[str]
) -> None:
    """All with the access log, at level debug without it; and never below the level."""
    async with started(service.url, tmp_path, **settings) as errors:
        await calls(tmp_path)
    lines = [json.loads(line) for line in errors.read_text().splitlines()]
    assert expected == [line["level"] for line in lines if line["event"] == "call"]


_FAULTS = """
import asyncio
import sys
from server.observability import logs
from server.observability.access_log import AccessLog
from server.observability.call_context import begin_call
from server.policy.principal import Principal, current_principal

logs.configure("info", sys.argv[1])
current_principal.set(Principal(sys.argv[2], sys.argv[2]))


async def calls():  # ends before the lines are written: they come all the same
    log = AccessLog(always=True)
    for code in ("OK", "NOT_FOUND", "INTERNAL", "UNKNOWN", "DATA_LOSS"):
        begin_call("/p.S/M", "unix:" + sys.argv[2])
        log.write(log.severity(code), code, 0.0123456)
    await asyncio.sleep(0)


asyncio.run(calls())
"""
_ALIKE = """
import asyncio
import sys
import structlog
from server.observability import logs
from server.observability.access_log import AccessLog
from server.observability.call_context import begin_call
from server.observability.trace_context import current_span, current_trace
from server.policy.principal import Principal, current_principal

logs.configure("info", "json")
current_principal.set(Principal("acm\u00e9", "al\\"ice"))
current_trace.set(sys.argv[1])
current_span.set("00f067aa0ba902b7")
structlog.contextvars.bind_contextvars(worker=3)


async def calls():
    call = begin_call("/p.S/M", "ipv6:%5B2001:db8::1%5D:5")
    AccessLog(always=True).write("info", "OK", 0.0123456)
    words = {"call": call.id, "method": "/p.S/M", "code": "OK", "ms": 12.346, "peer": "ipv6:[2001:db8::1]:5"}
    structlog.get_logger(log="access").info("call", **words, principal="al\\"ice", tenant="acm\u00e9")
    await asyncio.sleep(0)


asyncio.run(calls())
"""


def test_access_lines_are_formatted_like_all_others() -> None:
    """A line of the access log has the fields, types, characters and separators that structlog would give it."""
    theirs, ours = printed(_ALIKE, TRACE)
    assert '"log": "access"' in ours
    lines = [re.sub(r'"timestamp": "[0-9T:.-]+Z"', '"timestamp": ""', line).strip("{}") for line in (theirs, ours)]
    members = [sorted(line.split(", ")) for line in lines]
    assert members[0] == members[1]


FORGED = "eve\n2026-01-01T00:00:00Z [info     ] call\r\x1b[2K\u2028\u0085\x0b\"code=OK'"


@pytest.mark.parametrize("form", ["console", "json"])
def test_faults_are_warnings_and_no_line_can_be_forged(form: str) -> None:
    """What can only be our fault is a warning; a call is one line, whoever makes it."""
    lines = printed(_FAULTS, form, FORGED)
    assert 5 == len(lines), lines
    assert [] == [line for line in lines if not line.isprintable()]
    if form == "json":
        made = [json.loads(line) for line in lines]
        assert {("12.346", "unix:eve\\n", "eve\\n")} == {
            (str(it["ms"]), it["peer"][:10], it["principal"][:5]) for it in made
        }
        assert 5 == len({it["call"] for it in made})
        levels = [it["level"] for it in made]
    else:
        levels = [re.findall(r"\[(\w+) *\] call", line)[0] for line in lines]
    assert ["info", "info", "warning", "warning", "warning"] == levels


_LEVELS = """
import logging
import structlog
from server.authorization.audit_log import CallAudit
from server.observability import logs
from server.errors import ActionDenied
from server.policy.principal import Principal
from server.policy.rules import DEFAULT
from server.authorization.access import Access

log = structlog.get_logger("ours")  # as every module has it, before `configure`
other = logging.getLogger("theirs")
access = Access(Principal("", "alice"), DEFAULT)
audit = CallAudit(permits=True)
logs.configure("info", "json")
for level in (None, "error", "debug", "warning", "info"):
    if level:
        logs.set_level(level)
    assert logs.level() == (level or "info")
    assert logs.is_logged("debug") == (level == "debug")
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("ours", at=logs.level())
        getattr(other, name)("theirs")
    audit.record(access, "item", "read", ActionDenied("item", "read"))
    audit.record(access, "item", "read", None)
"""


def test_the_level_changes_at_once_and_for_all() -> None:
    """Loggers that have been used follow it, libraries as well; the audit log stays."""
    seen: dict[str, list[list[str]]] = {"ours": [], "theirs": [], "audit": []}
    rounds: list[list[dict[str, Any]]] = [[]]
    for line in map(json.loads, printed(_LEVELS)):
        rounds[-1].append(line)
        if line["event"] == "permitted":
            rounds.append([])
    for own in rounds[:-1]:
        for name, found in seen.items():
            found.append([line["level"] for line in own if name in (line["event"], line.get("log"))])
    all_levels = ["debug", "info", "warning", "error"]
    ours = [all_levels[first:] for first in (1, 3, 0, 2, 1)]
    theirs = [["warning", "error"], ["error"], *[["warning", "error"]] * 3]
    assert {"ours": ours, "theirs": theirs, "audit": [["warning", "info"]] * 5} == seen


_LIBRARY = """
import logging
import sys
from server.observability import logs
from server.observability.trace_context import current_span, current_trace

logs.configure("info", "json")
current_trace.set(sys.argv[1])
current_span.set("00f067aa0ba902b7")
try:
    raise ValueError("secret content")
except ValueError:
    logging.getLogger("lib").exception("it failed\\n%s", "x" * 1000)
import structlog
structlog.get_logger().info("ours")
"""


def test_lines_of_libraries_are_like_ours() -> None:
    """One JSON object, with its trace, where it came from, and not the text of its exception."""
    theirs, ours = map(json.loads, printed(_LIBRARY, TRACE))
    assert ("error", "lib", "ValueError") == tuple(theirs[name] for name in ("level", "logger", "error"))
    assert theirs["event"].startswith("it failed\n")
    assert 257 == len(theirs["event"])
    assert re.fullmatch(r"<string>:\d+ <module>", theirs["frames"][-1])
    assert "secret" not in json.dumps(theirs)
    for line in (theirs, ours):
        assert {"trace": TRACE, "span": "00f067aa0ba902b7"} == {name: line[name] for name in ("trace", "span")}


@pytest.mark.parametrize("form", ["console", "json"])
async def test_a_closed_log_fails_no_call(service: Service, tmp_path: Path, form: str) -> None:
    """When nobody reads the log any more, calls are answered still."""
    values = {"listen": f"unix:{tmp_path}/s", "database_url": service.url, "access_log": "true", "log_format": form}
    environment = ENVIRONMENT | {f"CONVERSATIONS_{name.upper()}": value for name, value in values.items()}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", stdout=pipe, stderr=pipe, env=environment
    )
    assert process.stdout is not None
    await process.stdout.readline()
    process._transport.get_pipe_transport(2).close()  # type: ignore[attr-defined]
    try:
        options = [("grpc.default_authority", "localhost")]
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s", options=options) as channel:
            for _ in range(3):
                await ConversationsServiceStub(channel).CreateConversation(create())
    finally:
        process.terminate()
        await process.wait()


GONE = """
import logging, sys
from grpc._cython.cygrpc import ExecuteBatchError
from server.observability.logs import configure
configure("debug", "json")
grpc = "grpc._cython.cygrpc"
for name, error in ((grpc, ExecuteBatchError), (grpc, ValueError), ("x", ExecuteBatchError)):
    try:
        raise error("secret")
    except Exception:
        logging.getLogger(name).exception("raised")
logging.getLogger(grpc).error("without an exception")
"""


def test_callers_that_left_are_no_errors() -> None:
    """What grpc.aio says of an answer that it could not send is left out, and nothing else that libraries say."""
    lines = [json.loads(line) for line in printed(GONE)]
    assert [("raised", "ValueError"), ("raised", "ExecuteBatchError"), ("without an exception", None)] == [
        (line["event"], line.get("error")) for line in lines
    ]
