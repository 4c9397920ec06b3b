"""Where a fork came from, and the forks of a conversation in the order of lists.

The columns and the index are committed apart, so a revision that was interrupted in between is repeated.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute("""ALTER TABLE conversations
        ADD COLUMN IF NOT EXISTS forked_from text COLLATE "C",
        ADD COLUMN IF NOT EXISTS forked_sequence bigint""")
    with op.get_context().autocommit_block():
        # Nobody waits behind an index that is built concurrently; it waits itself for every transaction that is older.
        op.execute("SET lock_timeout = 0")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS conversations_by_source")
        op.create_index(
            "conversations_by_source",
            "conversations",
            ["tenant", "forked_from", "create_time", "id"],
            postgresql_where=sa.text("forked_from IS NOT NULL AND delete_time IS NULL"),
            postgresql_concurrently=True,
        )
        op.execute("RESET lock_timeout")
