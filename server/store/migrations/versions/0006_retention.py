"""When conversations end by themselves, and when the purge looks at them.

No index has `expire_time`: appends move it, and stay heap-only updates. The purge finds what is due by `expirations`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_NAME = sa.Text(collation="C")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    # Constant defaults change the catalog only, however many rows there are.
    op.execute(
        "ALTER TABLE conversations"
        " ADD COLUMN expire_time timestamptz NOT NULL DEFAULT 'infinity',"
        " ADD COLUMN idle_ttl interval NOT NULL DEFAULT '0',"
        " ADD COLUMN limit_time timestamptz NOT NULL DEFAULT 'infinity'"
    )
    op.create_table(
        "expirations",
        sa.Column("conversation_id", _NAME, primary_key=True),
        sa.Column("check_time", _TIME, nullable=False),
    )
    op.create_index("expirations_by_time", "expirations", ["check_time"])
    op.create_table(
        "retention_limits",
        sa.Column("tenant", _NAME, primary_key=True),
        sa.Column("at_most", sa.Interval, nullable=False),
        sa.Column("applied_through", _TIME, nullable=False),
    )
