"""The values of attributes, a row each, in the order of lists."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_name = sa.Text(collation="C")


def upgrade() -> None:
    op.create_table(
        "conversation_attributes",
        sa.Column("conversation_id", _name, primary_key=True),
        sa.Column("attribute", _name, primary_key=True),
        sa.Column("tenant", _name, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index(
        "conversation_attributes_by_value",
        "conversation_attributes",
        ["tenant", "attribute", "create_time", "conversation_id"],
    )
    op.execute(
        "INSERT INTO conversation_attributes (conversation_id, attribute, tenant, create_time) "
        "SELECT id, unnest(attributes), tenant, create_time FROM conversations WHERE delete_time IS NULL"
    )
