"""A database that is distributed already, and filled, is brought up to date."""

import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from server.store import migrate as migrate_module
from server.store.migrate import HEAD, MigrationFailed, current_revision, migrate
from server.store.placement import place
from tests.support.build import append, list_items, user_message
from tests.support.distributed import SHARDS, make_joined_database, missing
from tests.support.postgres import drop_everywhere, fetch
from tests.support.service import Service, running_service
from tests.support.shards import connected

pytestmark = pytest.mark.citus
MIGRATIONS = Path(migrate_module.__file__).parent / "migrations"
# 200 conversations with an item each; 20 are deleted.
FILL = """
    INSERT INTO conversations (id, tenant, owner, attributes, metadata, last_sequence, version, revision,
        create_time, update_time, delete_time)
    SELECT 'conv_' || n, '', 'local', '{}', '{}', 1, 1, 1, now(), now(), CASE n % 10 WHEN 0 THEN now() END
    FROM generate_series(1, 200) AS n;
    INSERT INTO items (conversation_id, sequence, item_id, version, type, role, status, create_time, body)
    SELECT 'conv_' || n, 1, 'msg_1', 1, 'message', 'user', '', now(), '' FROM generate_series(1, 200) AS n"""
NEXT = f"""
from alembic import op
revision, down_revision = "9001", "{HEAD}"


def upgrade():
    op.execute("ALTER TABLE conversations ADD COLUMN later integer NOT NULL DEFAULT 7")
    op.execute("UPDATE conversations SET later = 8 WHERE delete_time IS NOT NULL")
    with op.get_context().autocommit_block():
        op.execute("CREATE INDEX CONCURRENTLY conversations_by_later ON conversations (tenant, later)")
"""
SHARDS_WITH_INDEX = """
    SELECT sum(result::int) AS count FROM run_command_on_workers($$
        SELECT count(*) FROM pg_index WHERE indisvalid AND indexrelid::regclass::text LIKE 'conversations_by_later_%'
    $$)"""


@pytest.fixture
async def older(postgres: str, template: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[str]:
    """A filled database that was distributed before the revision that makes triggers."""
    name = f"older_{uuid4().hex}"
    url = await make_joined_database(postgres, name)
    scripts = shutil.copytree(MIGRATIONS, tmp_path / "older")
    (scripts / "versions" / "0010_activity.py").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(migrate_module, "_SCRIPTS", scripts)
        patch.setattr(migrate_module, "HEAD", "0009")
        assert await migrate(url)
    await fetch(url, *FILL.split(";\n"))
    await place_existing(url)
    yield url
    await drop_everywhere(postgres, name)


async def place_existing(url: str) -> None:
    """Distributes the tables that an older revision has, as its `distribute` would."""
    plan = await missing(url)
    there = {row["relname"] for row in await fetch(url, "SELECT relname FROM pg_class WHERE relkind = 'r'")}
    distributed, copied = ([name for name in names if name in there] for names in (plan.distributed, plan.copied))
    async with connected(url) as connection:
        await place(connection, replace(plan, distributed=tuple(distributed), copied=tuple(copied)), SHARDS)


async def count(url: str, rows: str) -> int:
    """How many rows there are."""
    return int((await fetch(url, f"SELECT count(*) FROM {rows}"))[0][0])


async def test_a_revision_with_triggers(older: str) -> None:
    """It comes without them, its tables are placed, and the service goes on with what was stored."""
    assert await migrate(older)
    assert HEAD == await current_revision(older)
    assert (await missing(older)).is_empty
    assert 0 == await count(older, "pg_trigger WHERE tgname LIKE 'keep_activity%'")
    async with running_service(older) as service:
        await service.stub.CreateItems(append("conv_7", user_message("b")))
        page = await service.stub.ListItems(list_items("conv_7"))
        assert [2, 1] == [item.sequence for item in page.items]
    assert 180 == await count(older, "conversations WHERE delete_time IS NULL")


async def test_a_revision_that_is_interrupted_is_repeated(older: str) -> None:
    """What it has done stays, and the next try does the rest."""
    await fetch(older, "CREATE TABLE activity_by_owner ()")
    with pytest.raises(MigrationFailed):
        await migrate(older)
    await fetch(older, "DROP TABLE activity_by_owner")
    assert await migrate(older)
    assert (await missing(older)).is_empty


async def test_a_next_revision_while_the_service_runs(
    own_service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It changes a table, its rows and its indexes at all workers, and the service goes on."""
    url = own_service.url
    scripts = shutil.copytree(MIGRATIONS, tmp_path / "next")
    (scripts / "versions" / "9001_later.py").write_text(NEXT)
    monkeypatch.setattr(migrate_module, "_SCRIPTS", scripts)
    monkeypatch.setattr(migrate_module, "HEAD", "9001")
    await fetch(url, *FILL.split(";\n"))
    assert await migrate(url)
    assert "9001" == await current_revision(url)
    await own_service.stub.CreateItems(append("conv_7", user_message("b")))
    assert [180, 20] == [await count(url, f"conversations WHERE later = {value}") for value in (7, 8)]
    assert SHARDS == (await fetch(url, SHARDS_WITH_INDEX))[0]["count"]
