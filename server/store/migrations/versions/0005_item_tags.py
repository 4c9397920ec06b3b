"""Where an item is, of which only the id is known: by the digits that it shares with its conversation."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # Nobody waits behind an index that is built concurrently; it waits itself for every transaction that is older.
        op.execute("SET lock_timeout = 0")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS conversations_by_tag")
        op.create_index(
            "conversations_by_tag",
            "conversations",
            ["tenant", sa.text("right(id, 16)")],
            postgresql_where=sa.text("delete_time IS NULL"),
            postgresql_concurrently=True,
        )
        op.execute("RESET lock_timeout")
