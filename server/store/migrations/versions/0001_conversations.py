"""Conversations, items, request ids and the keys that sign page tokens."""

import os

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0001"
down_revision = None

_name = sa.Text(collation="C")
_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Migrations only add: an older program must run on the newer schema."""
    _conversations()
    _items()
    _requests()
    _page_token_keys()


def _conversations() -> None:
    op.create_table(
        "conversations",
        sa.Column("id", _name, primary_key=True),
        sa.Column("tenant", _name, nullable=False),
        sa.Column("owner", _name, nullable=False),
        sa.Column("attributes", pg.ARRAY(_name), nullable=False),
        sa.Column("metadata", pg.JSONB, nullable=False),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("create_time", _time, nullable=False),
        sa.Column("update_time", _time, nullable=False),
        sa.Column("delete_time", _time),
        postgresql_with={"fillfactor": "70"},
    )
    live, deleted = sa.text("delete_time IS NULL"), sa.text("delete_time IS NOT NULL")
    by_tenant, by_owner = ["tenant", "create_time", "id"], ["tenant", "owner", "create_time", "id"]
    op.create_index("conversations_by_tenant", "conversations", by_tenant, postgresql_where=live)
    op.create_index("conversations_by_owner", "conversations", by_owner, postgresql_where=live)
    op.create_index("conversations_deleted", "conversations", ["delete_time"], postgresql_where=deleted)


def _items() -> None:
    op.create_table(
        "items",
        sa.Column("conversation_id", _name, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("item_id", _name, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("type", _name, nullable=False),
        sa.Column("role", _name, nullable=False),
        sa.Column("status", _name, nullable=False),
        sa.Column("create_time", _time, nullable=False),
        sa.Column("delete_time", _time),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index(
        "items_by_id",
        "items",
        ["conversation_id", "item_id", "delete_time"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.create_index("items_deleted", "items", ["delete_time"], postgresql_where=sa.text("delete_time IS NOT NULL"))


def _requests() -> None:
    op.create_table(
        "requests",
        sa.Column("conversation_id", _name, primary_key=True),
        sa.Column("principal", _name, primary_key=True),
        sa.Column("method", sa.SmallInteger, primary_key=True),
        sa.Column("request_id", pg.UUID(as_uuid=False), primary_key=True),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("first_sequence", sa.BigInteger, nullable=False),
        sa.Column("item_count", sa.SmallInteger, nullable=False),
        sa.Column("create_time", _time, nullable=False, server_default=sa.text("now()")),
    )
    op.create_index("requests_by_time", "requests", ["create_time"], postgresql_using="brin")


def _page_token_keys() -> None:
    table = op.create_table(
        "page_token_keys",
        sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("secret", sa.LargeBinary, nullable=False),
    )
    op.bulk_insert(table, [{"id": 1, "secret": os.urandom(32)}])
