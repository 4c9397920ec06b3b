"""After an erasure and a vacuum, no byte of the person is in the database."""

from collections.abc import AsyncIterator
from datetime import timedelta
from secrets import token_hex

import asyncpg
import pytest
from structlog.testing import capture_logs

from server.app.erasure_runner import parse_filter
from server.store import change_log, erasing
from server.store.erasing import erase_subject
from server.store.erasures import Subject
from server.store.vacuum import vacuum
from tests.support.page_scan import relations_with
from tests.support.postgres import execute, fresh_database

OTHERS = 500  # conversations, among which those of the person lie
# $1 is the text to find afterwards: in every key and value, between those of somebody else.
ROWS = """
    WITH named AS (
        SELECT n, CASE n % 3 WHEN 0 THEN $1 ELSE 'person' || n END AS name, 'conv_' || lpad(n::text, 6, '0') AS id
        FROM generate_series(1, $2::int) AS n
    ), made AS (
        INSERT INTO conversations (id, tenant, owner, attributes, metadata, last_sequence, version, revision,
            create_time, update_time, delete_time)
        SELECT id || '_' || name, 'acme', name, ARRAY['teams=' || name], jsonb_build_object(name, name), 2, 1, 1,
            now() + n * interval '1 s', now(), CASE WHEN n % 5 = 0 THEN now() END
        FROM named RETURNING id, owner, create_time, delete_time
    ), indexed AS (
        INSERT INTO conversation_attributes
        SELECT id, 'teams=' || owner, 'acme', create_time FROM made WHERE delete_time IS NULL
    ), queued AS (
        INSERT INTO pending SELECT id FROM made
    ), reserved AS (
        INSERT INTO requests
        SELECT id, name, 4, gen_random_uuid(), '', 1, 1 FROM made, (VALUES ($1), ('x')) AS by (name)
    )
    INSERT INTO items (conversation_id, sequence, item_id, version, type, role, status, create_time, body, author)
    SELECT id, place, 'msg_' || author || place, 1, 'message', 'user', '', now(),
        CASE WHEN place = 3 AND author <> '' THEN ''::bytea ELSE convert_to(repeat(text, 300), 'UTF8') END, author
    FROM made, LATERAL (VALUES
        (1, '', owner), (2, CASE owner WHEN $1 THEN '' ELSE $1 END, $1),
        (3, CASE owner WHEN $1 THEN 'x' ELSE $1 END, '')
    ) AS item (place, author, text)"""
TABLES = {"conversations", "items", "requests", "conversation_attributes", "changes", "erasures", "activity", "pending"}
INDEXES = {
    "conversations_pkey",
    "conversations_by_owner",
    "conversations_deleted_by_owner",
    "conversation_attributes_pkey",
    "conversation_attributes_by_value",
    "items_pkey",
    "items_by_id",
    "items_by_author",
    "requests_pkey",
    "changes_pkey",
    "conversation_attributes_by_activity",
    "activity_pkey",
    "activity_by_owner",
    "activity_by_tenant",
    "pending_pkey",
}


@pytest.fixture
async def url(postgres: str, template: str) -> AsyncIterator[str]:
    """A database with an empty log of changes, and without compression: compressed text is not found."""
    async with fresh_database(postgres, template) as url:
        await change_log.turn_on(url, timedelta(hours=72))
        await execute(url, "ALTER TABLE items ALTER body SET STORAGE EXTERNAL")
        yield url


@pytest.fixture
async def connection(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that may read the files of the server."""
    connection = await asyncpg.connect(url)
    if not await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        pytest.skip("only a superuser can read the files")
    yield connection
    await connection.close()


async def test_nothing_is_left(url: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """No table, index or toast of a vacuumed database has the text, and no log line that the erasure writes."""
    canary = f"canary{token_hex(8)}"
    monkeypatch.setattr(erasing, "_WATCH_SECONDS", 0)
    monkeypatch.setattr(erasing, "_LOG_SECONDS", 0)
    await connection.execute(ROWS, canary, OTHERS)
    await connection.execute(
        "INSERT INTO erasures (tenant, id, principal, filter, fingerprint, requested_by, end_time)"
        " VALUES ('acme', gen_random_uuid(), '', '', '', $1, now())",
        canary,
    )
    await connection.execute("ANALYZE")
    toast = await connection.fetchval("SELECT reltoastrelid::regclass::text FROM pg_class WHERE relname = 'items'")
    assert TABLES | INDEXES | {toast, "pg_statistic"} <= await relations_with(connection, canary)
    with capture_logs() as lines:
        await erase_subject(url, "acme", Subject.of_principal(canary), parse_filter, 5)
    assert canary not in repr(lines)
    await vacuum(url)
    assert set() == await relations_with(connection, canary)
