"""`policy denials`: what a log says about refusals, whatever else is in it."""

import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli.commands import app
from server.cli.denials import MAX_KINDS, Denials
from server.cli.refusals import MAX_LINE, LinesRead, read_refusals
from server.errors import OperatorError
from server.policy.load import load
from tests.support.commands import ROOT, environment, finish, start_command

TENANTS = ROOT / "docs" / "policies" / "tenants.yaml"
DIGEST = load(TENANTS.read_text(encoding="utf-8")).digest


def line(**fields: Any) -> bytes:
    """An audit line as the service writes it, but for these fields."""
    made = {
        "principal": "alice",
        "tenant": "acme",
        "call": "9f86d0818a4c-1",
        "method": "/conversations.v1.ConversationsService/DeleteConversation",
        "peer": "ipv4:192.0.2.7:50000",
        "resource": "conversation",
        "action": "delete",
        "outcome": "ACTION_DENIED",
        "plan": "owned",
        "policy": DIGEST,
        "conversation_id": "conv_1",
        "rules": [3, None],
        "log": "audit",
        "event": "refused",
        "level": "warning",
        "timestamp": "2026-01-01T12:00:00.5Z",
    }
    return json.dumps({name: value for name, value in (made | fields).items() if value is not ...}).encode() + b"\n"


CREDENTIALS = json.dumps(
    {
        "source": "jwt",
        "method": "/conversations.v1.ConversationsService/GetItem",
        "peer": "ipv4:192.0.2.7:50000",
        "why": "expired",
        "trace": None,
        "call": "9f86d0818a4c-2",
        "event": "credentials refused",
        "level": "info",
        "timestamp": "2026-01-01T12:00:01Z",
    }
).encode()


def told(log: bytes, *arguments: str) -> str:
    """What the command prints about a log on standard input."""
    done = CliRunner().invoke(app, ["policy", "denials", *arguments], input=log)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert 0 == done.exit_code, done.output
    return done.output


def counted(log: bytes) -> dict[str, Any]:
    """The same for a program."""
    found: dict[str, Any] = json.loads(told(log, "--json"))
    return found


def test_a_table() -> None:
    """A row for each principal, action and rule, with the latest first; rules of a known policy have descriptions."""
    log = line() + line(timestamp="2026-01-01T12:00:02Z") + line(principal="bob", rules=[None]) + CREDENTIALS
    table, _, end = told(log, "--policy", str(TENANTS)).partition("\n\n")
    assert [
        ["LAST", "COUNT", "PRINCIPAL", "TENANT", "ACTION", "OUTCOME", "RULE"],
        ["2026-01-01", "12:00:02Z", "2", "alice", "acme", "delete", "conversation", "ACTION_DENIED", "3"],
        ["2026-01-01", "12:00:01Z", "1", "GetItem", "UNAUTHENTICATED", "expired"],
        ["2026-01-01", "12:00:00Z", "1", "bob", "acme", "delete", "conversation", "ACTION_DENIED", "none"],
    ] == [row.split()[:9] for row in table.splitlines()]
    assert "3 (apart from admins, only owners delete conversations) or none\n" in table
    assert "4 refusals in 4 lines.\n" == end


def test_json() -> None:
    """For a program: every field of the latest of a kind."""
    found = counted(line() + line(timestamp="2026-01-01T13:00:00Z", call="later", conversation_id="conv_2"))
    assert {
        "lines": 2,
        "unreadable": 0,
        "refusals": 2,
        "forgotten": 0,
        "denials": [
            {
                "principal": "alice",
                "tenant": "acme",
                "action": "delete conversation",
                "outcome": "ACTION_DENIED",
                "why": "",
                "rules": [3, None],
                "policy": DIGEST,
                "count": 2,
                "last": "2026-01-01T13:00:00Z",
                "last_call": "later",
                "last_conversation_id": "conv_2",
            }
        ],
    } == found


@pytest.mark.parametrize(
    "fields, rule",
    [
        ({"rule": 2, "rules": ...}, "2"),
        ({"rule": None, "rules": ...}, "none"),
        ({"rules": ...}, "unknown"),  # of a service that did not say it
        ({"rules": [1, 3, None]}, "1, 3 or none"),
        ({"policy": "another", "rules": [1]}, "1"),
    ],
)
def test_rules(fields: dict[str, Any], rule: str) -> None:
    """Which rules may have refused, as the line says it."""
    assert told(line(**fields)).splitlines()[1].endswith(f"ACTION_DENIED  {rule}")


def test_what_stands_before_a_line() -> None:
    """Logs of several containers say whose each line is."""
    assert 2 == counted(b"[pod/conversations-1/service] " + line() + b"conversations-1  | " + line())["refusals"]


_NESTED = b'{"log": "audit", "event": "refused", "x": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"


@pytest.mark.parametrize(
    "log",
    [
        b"Conversation Service on 127.0.0.1:50051\n",
        b"\xff\xfe{" + line(),
        line().replace(b"alice", b"\xff"),
        line()[:-3],
        line().replace(b'"audit"', b'"audit'),
        line(timestamp="yesterday"),
        line(timestamp=...),
        line(timestamp="2026-01-01T12:00:00"),
        line(timestamp="0001-01-01T00:00:00+14:00"),
        line(principal=["alice"]),
        line(outcome=None),
        line(rules=7),
        line(rules=[True]),
        line(rules=[0]),
        line(rules=[257]),
        line(rules=[3] * 258),
        line(rule="3"),
        line(rules=[3]).replace(b"[3]", b"[" + b"9" * 5000 + b"]"),
        _NESTED,
        line(principal="a" * MAX_LINE),
        b'"refused"{}' + b"x" * 3 * MAX_LINE,
    ],
    ids=lambda log: repr(log[:24]),
)
def test_strange_lines(log: bytes) -> None:
    """They are counted, and the lines around them too."""
    found = counted(line() + log.rstrip(b"\n") + b"\n" + line())
    assert (3, 2, 1) == (found["lines"], found["refusals"], found["unreadable"])


@pytest.mark.parametrize("size, unreadable", [(MAX_LINE - 1, 0), (MAX_LINE, 0), (MAX_LINE + 1, 1)])
def test_the_longest_line(size: int, unreadable: int) -> None:
    """It is read with its end; one byte more is not."""
    long = line(peer="p" * (size - len(line(peer=""))))
    assert size == len(long)
    assert (3, unreadable) == tuple(counted(line() + long + line())[name] for name in ("lines", "unreadable"))


@pytest.mark.parametrize(
    "other", [{"event": "permitted"}, {"event": "unknown"}, {"log": "access"}, {"event": "call", "why": "refused"}]
)
def test_lines_about_something_else(other: dict[str, Any]) -> None:
    """They are no refusals, and nothing is wrong with them."""
    found = counted(line(**other))
    assert (1, 0, 0) == (found["lines"], found["refusals"], found["unreadable"])
    assert "0 refusals in 1 line.\n" == told(line(**other))


def test_hostile_text() -> None:
    """A principal cannot move the cursor, whoever wrote the log."""
    output = told(line(principal="\x1b[2J\u202e\ud800eve\nx")) + told(line(principal="\x1b[2J\ud800"), "--json")
    assert all(each.isprintable() for each in output.splitlines())
    assert "\\x1b[2J\\u202e\\ud800eve\\nx" in output


def test_kinds_are_bounded() -> None:
    """Of more kinds than are kept, the one that has not been seen for longest is only counted."""
    log = line() + b"".join(line(principal=f"p{number}") for number in range(MAX_KINDS - 1)) + line()
    assert (MAX_KINDS + 1, 0) == tuple(counted(log)[name] for name in ("refusals", "forgotten"))
    found = counted(log + line(principal="one more", timestamp="2026-01-01T13:00:00Z"))
    assert (MAX_KINDS + 2, 1) == (found["refusals"], found["forgotten"])
    assert ["one more", "alice"] == [each["principal"] for each in found["denials"][:2]]
    assert "1 older refusal of kinds that were not kept." in told(log + line(principal="one more"))


def test_count() -> None:
    """The table has so many rows, and says how many it lacks."""
    log = b"".join(line(principal=f"p{number}") for number in range(3))
    assert "2 more kinds" in told(log, "--count", "1")
    assert "more" not in told(log, "--count", "3")


def test_a_log_that_is_no_json() -> None:
    """The log for people has no such lines: the command says so, instead of that nothing was refused."""
    with pytest.raises(OperatorError, match="log_format=json"):
        told(b"2026-01-01T12:00:00Z [warning  ] refused   log=audit\n")
    assert "0 refusals in 0 lines.\n" == told(b"")


def test_files(tmp_path: Path) -> None:
    """Several logs are one, and standard input may be among them."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(line())
    assert "3 refusals in 3 lines." in told(line(), str(tmp_path / "a"), "-", str(tmp_path / "b"))


_SCRIPT = """
import sys
from server.authorization.access import Access
from server.authorization.audit_log import CallAudit
from server.errors import ActionDenied, ConversationNotFound
from server.observability import logs
from server.policy.load import load
from server.policy.principal import Principal

logs.configure("info", "json")
access = Access(Principal("acme", "carol"), load(open(sys.argv[1]).read()))
CallAudit(permits=False).record(access, "conversation", "delete", ActionDenied("conversation", "delete"), "conv_1")
CallAudit(permits=False).record(access, "conversation", "explain", ActionDenied("policy", "explain"))
"""


async def test_lines_of_the_service() -> None:
    """What the service writes is what the command reads."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(TENANTS)], env=environment(), cwd=ROOT, capture_output=True, check=True
    )
    found = counted(done.stderr)["denials"]
    assert [("explain policy", [None]), ("delete conversation", [3, None])] == [
        (each["action"], each["rules"]) for each in found
    ]
    assert {DIGEST} == {each["policy"] for each in found}


async def test_a_log_that_is_followed() -> None:
    """Ctrl-C ends it, and the table is printed."""
    process = await start_command("policy", "denials", **environment())
    assert process.stdin is not None
    process.stdin.write(line() * 1000)  # more than a pipe holds, so that some are read when the rest is written
    await process.stdin.drain()
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(20):
        await process.wait()  # its input stays open until then
    code, output, errors = await finish(process)
    assert (0, "") == (code, errors)
    assert re.search(r"\b[1-9][\d,]* refusals in [\d,]+ lines", output)


@pytest.mark.slow
def test_a_long_log_takes_little_memory() -> None:
    """A million lines, each of another principal, take no more memory than the kinds that are kept."""
    reading, writing = os.pipe()
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, line(principal="PRINCIPAL").decode()], stdout=writing)
    os.close(writing)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    denials, read = Denials(), LinesRead()
    with os.fdopen(reading, "rb") as stream:
        for refusal in read_refusals(stream, read):
            denials.add(refusal)
    assert 0 == writer.wait()
    assert (1_000_000, MAX_KINDS) == (read.total, len(denials))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB


_WRITER = """
import sys
for number in range(1_000_000):
    sys.stdout.write(sys.argv[1].replace("PRINCIPAL", f"p{number}"))
"""
