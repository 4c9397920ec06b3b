"""`erase` counts first, erases when it is told to, and does so again after a restore."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from server.cli.erase import erase
from server.errors import OperatorError, ServiceError
from tests.support.build import create, user_message
from tests.support.commands import error_line_of, output_of
from tests.support.postgres import fetch
from tests.support.service import Service

COUNT = "SELECT count(*) FROM conversations"
ROWS = {"conversations": 2, "items": 3, "foreign_items": 0, "requests": 0}
NOTHING = dict.fromkeys(ROWS, 0)


async def fill(service: Service) -> None:
    """Two conversations of the one user, one of which says whose it is."""
    await service.stub.CreateConversation(create(user_message(), user_message()))
    await service.stub.CreateConversation(create(user_message(), metadata={"user": "u1"}))


@pytest.mark.slow
async def test_erase(own_service: Service, short_folder: Path) -> None:
    """It counts, then erases; its receipts, and lines that name a subject, erase once more what has come back."""
    await fill(own_service)
    local = ("erase", "--principal", "local")
    counted = json.loads(await output_of(*local, url=own_service.url))
    assert {"tenant": "", "principal": "local", "would_be_removed": ROWS} == counted
    assert 2 == (await fetch(own_service.url, COUNT))[0]["count"]

    receipt = await output_of(*local, "--apply", "--vacuum", url=own_service.url)
    told = json.loads(receipt)
    assert ("", "local", ROWS) == (told["tenant"], told["principal"], told["removed"])
    assert told["begin_time"] <= told["end_time"]
    assert 0 == (await fetch(own_service.url, COUNT))[0]["count"]

    await fill(own_service)
    file = short_folder / "receipts.jsonl"
    file.write_text(json.dumps({"tenant": "", "filter": 'metadata.user = "u1"'}) + "\n\n" + receipt, encoding="utf-8")
    told_again = await output_of("erase", "--again", str(file), url=own_service.url)
    again = [json.loads(line) for line in told_again.splitlines()]
    assert [(1, 1), (1, 2)] == [(each["removed"]["conversations"], each["removed"]["items"]) for each in again]
    assert again[1]["id"] != told["id"]
    once_more = await output_of("erase", "--again", str(file), url=own_service.url)
    assert [NOTHING, NOTHING] == [json.loads(line)["removed"] for line in once_more.splitlines()]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no subject": ({}, "one of them is needed"),
    "two subjects": ({"principal": "a", "chosen": 'owner = "a"'}, "only one of them"),
    "empty principal": ({"principal": ""}, "must not be empty"),
    "blank filter": ({"chosen": " "}, "must not be empty"),
    "wrong filter": ({"chosen": "everything"}, "filter:"),
    "long principal": ({"principal": "ä" * 129}, "1 to 256 bytes"),
    "long tenant": ({"principal": "a", "tenant": "x" * 257}, "at most 256 bytes"),
    "no file": ({"again": Path("nowhere.jsonl")}, "nowhere.jsonl"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options(name: str) -> None:
    """What is wrong is said before a database is looked for."""
    options, expected = WRONG[name]
    with pytest.raises((OperatorError, ServiceError, OSError), match=re.escape(expected)):
        erase(**options, apply=True)


@pytest.mark.parametrize("line", ["no json", "[]", "{}", '{"tenant": "", "principal": 1}', '{"tenant": ""}', "\udcff"])
def test_a_line_that_is_no_receipt(tmp_path: Path, line: str) -> None:
    """A file with one such line erases nobody."""
    file = tmp_path / "receipts.jsonl"
    file.write_bytes(b'{"tenant": "", "principal": "local"}\n' + line.encode(errors="surrogateescape"))
    with pytest.raises(OperatorError, match=r"line 2: is no receipt|must not be empty"):
        erase(again=file)


async def test_an_old_schema(postgres: str) -> None:
    """A database that was not migrated is told, and which command does it."""
    assert "python -m server migrate" in await error_line_of("erase", "--principal", "a", url=postgres)
