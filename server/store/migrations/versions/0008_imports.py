"""The imports that have not ended. The table is made empty."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0008"
down_revision = "0007"

_name = sa.Text(collation="C")


def upgrade() -> None:
    op.create_table(
        "imports",
        sa.Column("conversation_id", _name, primary_key=True),
        sa.Column("tenant", _name, nullable=False),
        sa.Column("head", sa.LargeBinary, nullable=False),
        sa.Column("stream", pg.UUID, nullable=False),
        sa.Column("stored_sequence", sa.BigInteger, nullable=False),
        sa.Column("item_count", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("touch_time", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )
