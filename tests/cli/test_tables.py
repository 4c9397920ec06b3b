"""`conversations list`, `items list` and `item show`: what people and programs read, over the wire."""

import asyncio
import json

import pytest
from rich.cells import cell_len
from structlog.testing import capture_logs
from typer.testing import CliRunner

from server.cli import listing, tables
from server.cli.client import Target, connection
from server.cli.commands import app
from tests.support.build import append, create, get_item, user_message
from tests.support.service import Service

HOSTILE = "\x1b[2Jgone\r\x9b1A\u202egnp.exe\nnext"
ESCAPED = "\\x1b[2Jgone\\r\\x9b1A\\u202egnp.exe"


async def told(service: Service, *arguments: str) -> str:
    """What a command prints."""
    with capture_logs():  # of the service, which is in this process
        done = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--target", service.address])
    assert 0 == done.exit_code, (done.output, done.exception)
    return done.output


async def test_conversations(own_service: Service) -> None:
    """A line for each, newest first, under a header; as JSON the names of the contract."""
    for number in range(3):
        await own_service.stub.CreateConversation(create(metadata={"topic": f"t{number}"}))
    header, *rows = (await told(own_service, "conversations", "list", "--count", "2")).splitlines()
    assert ["ID", "CREATED", "UPDATED", "OWNER", "LAST", "METADATA"] == header.split()
    assert ["topic=t2", "topic=t1"] == [row.split()[-1] for row in rows]
    assert {header.index("METADATA")} == {row.index("topic=") for row in rows}
    lines = (
        await told(own_service, "conversations", "list", "--json", "--filter", 'metadata.topic = "t0"')
    ).splitlines()
    (found,) = map(json.loads, lines)
    assert {"topic": "t0"} == found["metadata"]
    assert "create_time" in found


async def test_items(service: Service) -> None:
    """A line for each, from either end; as JSON what OpenAI's API returns."""
    made = await service.stub.CreateConversation(create(user_message("one"), user_message("two")))
    newest = (await told(service, "items", "list", made.id)).splitlines()
    assert ["SEQUENCE", "ID", "CREATED", "TYPE", "TEXT"] == newest[0].split()
    assert [["2", "two"], ["1", "one"]] == [[row.split()[0], row.split()[-1]] for row in newest[1:]]
    oldest = await told(service, "items", "list", made.id, "--oldest-first", "--count", "1", "--json")
    assert [{"type": "input_text", "text": "one"}] == json.loads(oldest)["content"]


async def test_hostile_text(service: Service) -> None:
    """Text of callers cannot clear a screen, move the cursor or turn the line around."""
    made = await service.stub.CreateConversation(
        create(user_message(HOSTILE, id="msg_a"), metadata={"\x1b[0m": HOSTILE})
    )
    commands = (
        ("conversations", "list"),
        ("conversations", "list", "--json"),
        ("items", "list", made.id),
        ("items", "list", made.id, "--json"),
        ("item", "show", made.id, "msg_a"),
        ("item", "show", made.id, "msg_a", "--json"),
    )
    for command in commands:
        output = await told(service, *command)
        assert all(line.isprintable() for line in output.split("\n")), command
    assert ESCAPED in await told(service, "item", "show", made.id, "msg_a")
    item = await service.stub.GetItem(get_item(made.id, "msg_a"))
    assert f"  {ESCAPED}\n  next" in tables.item_page(item)
    assert 2 == len(tables.item_table([item]).split("\n"))


async def test_a_page_is_not_the_end(service: Service) -> None:
    """As many as asked for are fetched, however many a page has, and no more."""
    made = await service.stub.CreateConversation(create())
    for start in range(0, 120, 20):
        await service.stub.CreateItems(append(made.id, *(user_message(f"{start + n}") for n in range(20))))

    def count(asked: int) -> int:
        with connection(Target(target=service.address)).open() as channel:
            return len(list(listing.items(channel, made.id, asked, oldest_first=True)))

    assert [100, 101, 120] == [await asyncio.to_thread(count, asked) for asked in (100, 101, 1000)]


async def test_nothing(own_service: Service) -> None:
    """No rows are a header for people, and nothing for programs."""
    assert ["ID"] == (await told(own_service, "conversations", "list")).split()[:1]
    assert "" == (await told(own_service, "conversations", "list", "--json")).strip()


@pytest.mark.parametrize("text, shown", [("x" * 64, "x" * 64), ("x" * 65, "x" * 63 + "…")])
def test_long_text_is_cut(text: str, shown: str) -> None:
    """A line stays a line."""
    assert f"A\n{shown}" == tables.table(("A",), [(text,)])


def test_wide_signs() -> None:
    """Columns stand below each other, also behind signs that take two places."""
    lines = tables.table(("A", "B"), [("日本語", "x"), ("abc", "x")]).split("\n")
    assert 1 == len({cell_len(line[: line.index("x")]) for line in lines[1:]})


@pytest.mark.parametrize("count", ["0", "10001"])
def test_the_count_has_limits(count: str) -> None:
    """1 to 10,000 rows, because all of them are in memory."""
    done = CliRunner().invoke(app, ["conversations", "list", "--count", count])
    assert 2 == done.exit_code
