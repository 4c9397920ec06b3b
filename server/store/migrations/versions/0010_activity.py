"""What lists by active_time need: a row for each conversation beside it, its triggers, and a queue.

Columns, tables, rows and indexes are committed apart, so a revision that was interrupted in between is repeated. The
rows of older conversations are made here, in steps, so that no list by active_time ever lacks one; their times are
moved later, by the service. A distributed database gets neither triggers nor rows, because Citus takes no triggers.
"""

import time
from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

_STEP = 1_000  # rows of one statement, which locks them
_RETRY_SECONDS = 0.1  # for those that somebody else has locked
# The service only deletes rows that are tombstones; the third trigger is for an operator's SQL. Appends fire none.
_FUNCTION = """
    CREATE OR REPLACE FUNCTION conversations_keep_activity() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP <> 'DELETE' AND NEW.delete_time IS NULL THEN
            INSERT INTO {schema}.activity (conversation_id, tenant, owner, active_time)
            VALUES (NEW.id, NEW.tenant, NEW.owner, coalesce(NEW.active_time, NEW.create_time))
            ON CONFLICT (conversation_id) DO UPDATE SET
                tenant = excluded.tenant, owner = excluded.owner, active_time = excluded.active_time;
        ELSE
            DELETE FROM {schema}.activity WHERE conversation_id = OLD.id;
        END IF;
        RETURN NULL;
    END $$"""
_TRIGGERS = (
    """CREATE OR REPLACE TRIGGER keep_activity_of_new AFTER INSERT ON conversations FOR EACH ROW
        WHEN (NEW.delete_time IS NULL) EXECUTE FUNCTION conversations_keep_activity()""",
    """CREATE OR REPLACE TRIGGER keep_activity AFTER UPDATE OF tenant, owner, delete_time ON conversations FOR EACH ROW
        WHEN ((OLD.delete_time IS NULL) <> (NEW.delete_time IS NULL)
            OR OLD.tenant <> NEW.tenant OR OLD.owner <> NEW.owner)
        EXECUTE FUNCTION conversations_keep_activity()""",
    """CREATE OR REPLACE TRIGGER keep_activity_of_old AFTER DELETE ON conversations FOR EACH ROW
        WHEN (OLD.delete_time IS NULL) EXECUTE FUNCTION conversations_keep_activity()""",
)
# Locked, so that a delete or a change of owner does not pass between the read and the row. The last id, and whether
# rows were left out because they are locked.
_FILL = """
    WITH page AS MATERIALIZED (
        SELECT id FROM conversations WHERE id > :after ORDER BY id LIMIT :step
    ), missing AS MATERIALIZED (
        SELECT id FROM page JOIN conversations USING (id)
        WHERE delete_time IS NULL AND NOT EXISTS (SELECT FROM activity WHERE conversation_id = id)
    ), locked AS (
        SELECT id, tenant, owner, delete_time, coalesce(active_time, create_time) AS active_time FROM conversations
        WHERE id IN (SELECT id FROM missing) ORDER BY id FOR SHARE SKIP LOCKED
    ), filled AS (
        INSERT INTO activity (conversation_id, tenant, owner, active_time)
        SELECT id, tenant, owner, active_time FROM locked WHERE delete_time IS NULL
        ON CONFLICT (conversation_id) DO NOTHING
    )
    SELECT max(id) AS last, (SELECT count(*) FROM missing) > (SELECT count(*) FROM locked) AS skipped FROM page"""
_LOOKUPS = ("seqscan", "bitmapscan", "hashjoin", "mergejoin")  # as `server.store.steps.LOOKUPS`: no need of statistics


def upgrade() -> None:
    op.execute("ALTER TABLE conversations ADD COLUMN IF NOT EXISTS active_time timestamptz")
    op.execute("ALTER TABLE conversation_attributes ADD COLUMN IF NOT EXISTS active_time timestamptz")
    _tables()
    keeps = not _is_distributed()
    if keeps:
        _create_triggers()
    with op.get_context().autocommit_block():
        # Nobody waits behind an index that is built concurrently; it waits itself for every transaction that is older.
        op.execute("SET lock_timeout = 0")
        if keeps:
            _fill()
        key = ["tenant", "active_time", "conversation_id"]
        _index("activity_by_tenant", "activity", key)
        _index("activity_by_owner", "activity", ["tenant", "owner", *key[1:]])
        listed = sa.text("coalesce(active_time, create_time)")
        by_value: list[str | sa.TextClause] = ["tenant", "attribute", listed, "conversation_id"]
        _index("conversation_attributes_by_activity", "conversation_attributes", by_value)
        op.execute("RESET lock_timeout")


def _is_distributed() -> bool:
    bind = op.get_bind()
    if not bind.scalar(sa.text("SELECT to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL")):
        return False
    placed = "SELECT EXISTS (SELECT FROM pg_catalog.pg_dist_partition WHERE logicalrelid = 'conversations'::regclass)"
    return bool(bind.scalar(sa.text(placed)))


def _create_triggers() -> None:
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    for statement in (_FUNCTION.format(schema=schema), *_TRIGGERS):
        op.execute(statement)


def _tables() -> None:
    op.execute(
        """CREATE TABLE IF NOT EXISTS activity (
            conversation_id text COLLATE "C" PRIMARY KEY,
            tenant text COLLATE "C" NOT NULL,
            owner text COLLATE "C" NOT NULL,
            active_time timestamptz NOT NULL)"""
    )
    # Rows come and go: without frequent vacuums, each pass over the queue would read what has gone since the last one.
    op.execute(
        """CREATE TABLE IF NOT EXISTS pending (
            conversation_id text COLLATE "C" PRIMARY KEY,
            since timestamptz NOT NULL DEFAULT now())
            WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000)"""
    )
    op.execute(
        """CREATE TABLE IF NOT EXISTS activity_progress (
            id smallint PRIMARY KEY,
            conversation_id text COLLATE "C" NOT NULL,
            is_done boolean NOT NULL)"""
    )
    op.execute(
        """INSERT INTO activity_progress SELECT 1, '', NOT EXISTS (SELECT 1 FROM conversations)
            ON CONFLICT (id) DO NOTHING"""
    )


def _fill() -> None:
    """Makes the rows of the conversations that are there, until none lacks one."""
    for setting in _LOOKUPS:
        op.execute(f"SET enable_{setting} = off")
    while _fill_once():
        time.sleep(_RETRY_SECONDS)
    for setting in _LOOKUPS:
        op.execute(f"RESET enable_{setting}")


def _fill_once() -> bool:
    """Goes through all conversations once; returns whether some were locked by others."""
    after, skipped = "", False
    while row := _next_page(after):
        after, skipped = row.last, skipped or row.skipped
    return skipped


def _next_page(after: str) -> "sa.Row[tuple[str, bool]] | None":
    row = op.get_bind().execute(sa.text(_FILL), {"after": after, "step": _STEP}).one()
    return row if row.last is not None else None


def _index(name: str, table: str, columns: Sequence[str | sa.TextClause]) -> None:
    op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    op.create_index(name, table, columns, postgresql_concurrently=True)
