"""What watches read: the deletions of a conversation in order, and up to which of them the purge has come.

The column and the index are committed apart, so a revision that was interrupted in between is repeated.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("ALTER TABLE conversations ADD COLUMN IF NOT EXISTS purged_version bigint NOT NULL DEFAULT 0")
    with op.get_context().autocommit_block():
        # Nobody waits behind an index that is built concurrently; it waits itself for every transaction that is older.
        op.execute("SET lock_timeout = 0")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS items_deletions")
        op.create_index(
            "items_deletions",
            "items",
            ["conversation_id", "version", "sequence"],
            postgresql_where=sa.text("delete_time IS NOT NULL"),
            postgresql_concurrently=True,
        )
        op.execute("RESET lock_timeout")
