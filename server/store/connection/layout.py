"""How the tables lie in the database, found out once, before the first call: in one server, or distributed by Citus.

What differs between the two is in `Layout`; nothing else asks which it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from server.errors import NotSupported
from server.store.sql.routing import route
from server.store.sql.statement import Statement

if TYPE_CHECKING:
    import asyncpg

# Two statements, since a server without Citus lacks the table.
_HAS_CITUS = "SELECT to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL"
_IS_DISTRIBUTED = """
    SELECT EXISTS (SELECT FROM pg_catalog.pg_dist_partition WHERE logicalrelid = to_regclass('conversations'))"""


def _as_it_is(statement: Statement) -> Statement:
    return statement


def _is_defect(error: BaseException) -> BaseException:
    return error


def _explain_refusal(error: BaseException) -> BaseException:
    """A statement that Citus cannot plan has changed nothing; policies and filters decide which it gets."""
    if getattr(error, "sqlstate", None) == "0A000":  # feature_not_supported
        return NotSupported("This call, under this policy,")
    return error


@dataclass(frozen=True)
class Layout:
    """What depends on how the tables lie.

    Attributes:
        name: For GetStatus, metrics and the log.
        session: Settings of each session that differ from those of `Bounds.session`.
        spans_conversations: Whether one statement may concern several conversations, and write to them.
        route: Makes of a statement the one that is sent.
        explain: Makes of an error for which there is no rule the one that is raised.
        erases: Whether erasures can be carried out.
        orders_by_activity: Whether the order by activity is kept, for which tables have triggers.
        refuses: What does not work, for the log of the start; docs/scale.md has the reasons.
    """

    name: str
    session: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    spans_conversations: bool = True
    route: Callable[[Statement], Statement] = _as_it_is
    explain: Callable[[BaseException], BaseException] = _is_defect
    erases: bool = True
    orders_by_activity: bool = True
    refuses: tuple[str, ...] = ()

    @property
    def is_distributed(self) -> bool:
        """Whether they lie in several servers, for metrics."""
        return not self.spans_conversations


ONE_SERVER = Layout("one server")
DISTRIBUTED = Layout(
    "distributed",
    session=MappingProxyType(
        {
            # Citus finds the shard by the values of the parameters, which a generic plan does not have.
            "plan_cache_mode": "auto",
            # Citus hides shards from the catalog by a rewrite that costs 0.3 s when the driver looks types up.
            "citus.override_table_visibility": "off",
        }
    ),
    spans_conversations=False,
    route=route,
    explain=_explain_refusal,
    erases=False,
    orders_by_activity=False,
    refuses=("WatchConversations", "EraseSubject", 'order_by: "active_time desc"'),
)


async def find_layout(connection: "asyncpg.Connection | asyncpg.Pool") -> Layout:
    """Returns how the tables of this database lie; `ONE_SERVER` also when there are none yet.

    Raises:
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: The database cannot be asked.
    """
    if not await connection.fetchval(_HAS_CITUS):
        return ONE_SERVER
    return DISTRIBUTED if await connection.fetchval(_IS_DISTRIBUTED) else ONE_SERVER
