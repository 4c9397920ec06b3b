"""The log of changes that WatchConversations reads. It stays empty until `python -m server changes on` fills it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0004"
down_revision = "0003"

_name = sa.Text(collation="C")
_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("conversations", sa.Column("position", sa.BigInteger))
    op.create_table(
        "changes",
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("conversation_id", _name, primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("previous_sequence", sa.BigInteger, nullable=False),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
        sa.Column("tenant", _name, nullable=False),
        sa.Column("owner", _name, nullable=False),
        sa.Column("attributes", pg.ARRAY(_name), nullable=False),
        sa.Column("old_tenant", _name),
        sa.Column("old_owner", _name),
        sa.Column("old_attributes", pg.ARRAY(_name)),
        sa.Column("change_time", _time, nullable=False),
    )
    _change_log()


def _change_log() -> None:
    table = op.create_table(
        "change_log",
        sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("is_on", sa.Boolean, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("floor", sa.BigInteger, nullable=False),
        sa.Column("keep", sa.Interval, nullable=False),
        sa.Column("since", _time, nullable=False),
    )
    off = {"id": 1, "is_on": False, "epoch": 0, "floor": 0}
    op.execute(sa.insert(table).values(**off, keep=sa.text("interval '72 hours'"), since=sa.func.now()))
