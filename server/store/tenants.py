"""Whether the store has tenants."""

from sqlalchemy import bindparam, exists, select

from server.store.connection.database import Database
from server.store.sql.schema import Name, conversations, live
from server.store.sql.statement import compile_statement

_HAS_TENANTS = compile_statement(
    select(exists().where(conversations.c.tenant > bindparam("without", type_=Name), live).label("found")), kind="read"
)


async def has_tenants(database: Database) -> bool:
    """Returns whether a conversation belongs to a tenant other than `''`; raises as `Database.fetch`."""
    row = await database.fetchrow(_HAS_TENANTS, {"without": ""})
    return row is not None and bool(row["found"])
