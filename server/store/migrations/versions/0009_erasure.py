"""What an erasure needs: who appended an item to a conversation of somebody else, indexes, and a row for each.

Columns, tables and indexes are committed apart, so a revision that was interrupted in between is repeated.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    # '' for who owns the conversation. A constant: the rows are not written again.
    op.execute("ALTER TABLE items ADD COLUMN IF NOT EXISTS author text COLLATE \"C\" NOT NULL DEFAULT ''")
    op.execute(
        """CREATE TABLE IF NOT EXISTS erasures (
            tenant text COLLATE "C" NOT NULL,
            id uuid NOT NULL,
            principal text COLLATE "C" NOT NULL,
            filter text COLLATE "C" NOT NULL,
            fingerprint bytea NOT NULL,
            requested_by text COLLATE "C" NOT NULL,
            begin_time timestamptz NOT NULL DEFAULT now(),
            end_time timestamptz,
            conversation_count bigint NOT NULL DEFAULT 0,
            item_count bigint NOT NULL DEFAULT 0,
            foreign_item_count bigint NOT NULL DEFAULT 0,
            request_count bigint NOT NULL DEFAULT 0,
            PRIMARY KEY (tenant, id))"""
    )
    _author_progress()
    with op.get_context().autocommit_block():
        # Nobody waits behind an index that is built concurrently; it waits itself for every transaction that is older.
        op.execute("SET lock_timeout = 0")
        _index("items_by_author", "items", ["author", "conversation_id", "sequence"], "author <> ''")
        key = ["tenant", "owner", "create_time", "id"]
        _index("conversations_deleted_by_owner", "conversations", key, "delete_time IS NOT NULL")
        op.execute("RESET lock_timeout")


def _author_progress() -> None:
    """One row: up to which key the authors of items from before this revision have been filled in."""
    op.execute(
        """CREATE TABLE IF NOT EXISTS author_progress (
            id smallint PRIMARY KEY,
            conversation_id text COLLATE "C" NOT NULL,
            sequence bigint NOT NULL,
            is_done boolean NOT NULL)"""
    )
    op.execute(
        "INSERT INTO author_progress SELECT 1, '', 0, NOT EXISTS (SELECT FROM items) ON CONFLICT (id) DO NOTHING"
    )


def _index(name: str, table: str, columns: list[str], where: str) -> None:
    op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    op.create_index(name, table, columns, postgresql_where=sa.text(where), postgresql_concurrently=True)
