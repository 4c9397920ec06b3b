"""Functions that run a statement at the worker of a conversation, on the tables that hold it (docs/adr/0040 to 0042).

The coordinator forwards a call of `WRITE`, `READ` or `LIST` as a whole. Each name has a number, so that versions beside
each other have their own. The sessions of a worker keep the plans of what they run, for each statement and shard.
"""

from dataclasses import dataclass

WRITE = "write_conversation_2"
READ = "read_conversation_1"
LIST = "list_conversations_1"
ROW = "written_row_2"
# SQLSTATE of a call that the coordinator has run itself. It does so when a session has planned a statement that Citus
# refuses: from then on it forwards nothing. A new session does.
NOT_FORWARDED = "CV001"
MOST_PLANS = 256  # that a session of a worker keeps; what comes after them is planned each time
MOST_LITERAL_BYTES = 64 * 1024  # of the arguments of a kept plan, which are written into a text

# All that a statement that writes or lists may return; a list has exactly these types.
COLUMNS = {
    "id": "text",
    "conversation_id": "text",
    "owner": "text",
    "attributes": "text[]",
    "metadata": "jsonb",
    "last_sequence": "bigint",
    "revision": "bigint",
    "create_time": "timestamptz",
    "update_time": "timestamptz",
    "active_time": "timestamptz",
    "expire_time": "timestamptz",
    "idle_ttl": "interval",
    "forked_from": "text",
    "forked_sequence": "bigint",
    "number": "bigint",
    "base": "bigint",
    "stored_sequence": "bigint",
    "item_count": "bigint",
    "digest": "bytea",
    "count": "bigint",
    "is_own": "boolean",
    "sequence": "bigint",
    "removed": "bigint",
    "found": "bigint",
    "seen": "bigint",
    "marked": "bigint",
    "skipped": "bigint",
    "tenant": "text",
}
# All that a statement that reads items may return there, exactly of these types.
READ_COLUMNS = {"sequence": "bigint", "body": "bytea", "size": "integer", "position": "bigint"}
CREATE_ROW = f"CREATE TYPE {ROW} AS ({', '.join(f'{name} {type_}' for name, type_ in COLUMNS.items())})"


@dataclass(frozen=True)
class ShardFunction:
    """A function that every node has.

    Attributes:
        name: Its name.
        arguments: Their names and types.
        result: What it returns.
        body: In PL/pgSQL.
        is_forwarded: Whether the coordinator forwards calls by their first argument, a conversation.
    """

    name: str
    arguments: str
    result: str
    body: str
    is_forwarded: bool = False

    @property
    def create(self) -> str:
        """Makes it; with plans as the sessions of one server have them (docs/adr/0010)."""
        setting = "SET plan_cache_mode = force_generic_plan" if self.is_forwarded else ""
        return f"""
            CREATE OR REPLACE FUNCTION {self.name}({self.arguments}) RETURNS {self.result}
            LANGUAGE plpgsql {setting} AS $function${self.body}$function$"""

    @property
    def distribute(self) -> str:
        """Puts it on every node."""
        types = ", ".join(argument.split()[1] for argument in self.arguments.split(", ") if argument)
        key = ", 'conversation', colocate_with := 'conversations'" if self.is_forwarded else ""
        return f"SELECT create_distributed_function('{self.name}({types})'{key})"


# What a function looks up itself, because each function that it calls costs as much as a third of a short statement.
_SHARD = "get_shard_id_for_distribution_column('conversations', conversation)"
_REQUIRE_SHARD = """
        IF NOT EXISTS (
            SELECT FROM pg_catalog.pg_dist_placement JOIN pg_catalog.pg_dist_local_group USING (groupid)
            WHERE shardid = shard
        ) THEN
            PERFORM refuse_shard_1();
        END IF;"""
# The name of a plan; short enough for PostgreSQL whatever the number of the shard.
_PLAN = "format('conv_%s_%s', shard, md5(statement))"
_EXECUTE = "format('EXECUTE %I(%L, %L)', plan, texts, bodies)"


def _planned(statement: str) -> str:
    """SQL that sets ``statement`` to the plan if the session knows it, else to what `_KEPT_PLAN` returns for SQL."""
    return f"""
        IF strpos(current_setting('conversations.plans', true), plan) > 0
            AND pg_column_size(texts) + pg_column_size(bodies) <= {MOST_LITERAL_BYTES}
        THEN
            statement := {_EXECUTE};
        ELSE
            statement := kept_plan_1(plan, {statement}, texts, bodies);
        END IF;"""


_AT_SHARD = _planned("statement_at_shard_1(conversation, tables, statement)")
_ON_SHARDS = _planned(
    """
                replace(statement, '{conversations}', '(' || (
                    SELECT string_agg(format('SELECT * FROM %I', 'conversations_' || shard), ' UNION ALL ')
                    FROM unnest(shards) AS shard) || ')')"""
)

# Whoever has waited for a move finds the shard at another node, and tries again.
_REFUSE_SHARD = ShardFunction(
    "refuse_shard_1",
    "",
    "void",
    f"""
    BEGIN
        IF (SELECT groupid FROM pg_catalog.pg_dist_local_group) = 0 THEN
            RAISE 'the call was not forwarded' USING ERRCODE = '{NOT_FORWARDED}';
        END IF;
        RAISE 'the conversation is at another node' USING ERRCODE = 'serialization_failure';
    END """,  # noqa: S608 - our own text
)
_STATEMENT_AT_SHARD = ShardFunction(
    "statement_at_shard_1",
    "conversation text, tables text[], statement text",
    "text",
    """
    DECLARE
        name text;
    BEGIN
        FOREACH name IN ARRAY tables LOOP
            statement := replace(statement, '{' || name || '}',
                quote_ident(name || '_' || get_shard_id_for_distribution_column(name::regclass, conversation)));
        END LOOP;
        RETURN statement;
    END """,
)
# Returns a text to be run with the arguments texts and bodies: a kept plan, or the statement. The setting names plans
# that are kept; a transaction that is undone takes its name out again, and leaves the plan.
_KEPT_PLAN = ShardFunction(
    "kept_plan_1",
    "plan text, statement text, texts text[], bodies bytea[]",
    "text",
    f"""
    BEGIN
        IF pg_column_size(texts) + pg_column_size(bodies) > {MOST_LITERAL_BYTES} THEN
            RETURN statement;
        END IF;
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE name = plan) THEN
            IF (SELECT count(*) FROM pg_catalog.pg_prepared_statements) >= {MOST_PLANS} THEN
                RETURN statement;
            END IF;
            EXECUTE format('PREPARE %I (text[], bytea[]) AS %s', plan, statement);
        END IF;
        PERFORM set_config('conversations.plans',
            concat_ws(' ', current_setting('conversations.plans', true), plan), false);
        RETURN {_EXECUTE};
    END """,  # noqa: S608 - our own text
)
# A lock in the mode SHARE (5) keeps Citus from moving the shard meanwhile; every write that Citus plans takes it too.
_WRITE = ShardFunction(
    WRITE,
    "conversation text, tables text[], statement text, texts text[], bodies bytea[], counts boolean",
    f"SETOF {ROW}",
    f"""
    DECLARE
        shard bigint := {_SHARD};
        plan text := {_PLAN};
        written record;
        result {ROW};
    BEGIN
        PERFORM lock_shard_metadata(5, ARRAY[shard]);
        {_REQUIRE_SHARD}
        IF counts THEN
            EXECUTE statement_at_shard_1(conversation, tables, statement) USING texts, bodies;
            GET DIAGNOSTICS result.count = ROW_COUNT;
            RETURN NEXT result;
            RETURN;
        END IF;
        {_AT_SHARD}
        FOR written IN EXECUTE statement USING texts, bodies LOOP
            RETURN NEXT jsonb_populate_record(NULL::{ROW}, to_jsonb(written));
        END LOOP;
    END """,
    is_forwarded=True,
)
# A read takes no lock, so that none waits for a move: the tables that are left behind stay for a while.
_READ = ShardFunction(
    READ,
    "conversation text, tables text[], statement text, texts text[]",
    "SETOF record",
    f"""
    DECLARE
        shard bigint := {_SHARD};
        plan text := {_PLAN};
        bodies bytea[] := '{{}}';
    BEGIN
        {_REQUIRE_SHARD}
        {_AT_SHARD}
        RETURN QUERY EXECUTE statement USING texts, bodies;
    END """,
    is_forwarded=True,
)
# Several shards of the worker of a conversation, as one table: PostgreSQL reads the front of each one's index.
_LIST = ShardFunction(
    LIST,
    "conversation text, shards bigint[], statement text, texts text[]",
    "SETOF record",
    f"""
    DECLARE
        plan text := format('conv_%s', md5(shards::text || statement));
        bodies bytea[] := '{{}}';
    BEGIN
        IF cardinality(shards) > (
            SELECT count(*) FROM pg_catalog.pg_dist_placement JOIN pg_catalog.pg_dist_local_group USING (groupid)
            WHERE shardid = ANY(shards)
        ) THEN
            PERFORM refuse_shard_1();
        END IF;
        {_ON_SHARDS}
        RETURN QUERY EXECUTE statement USING texts, bodies;
    END """,  # noqa: S608 - our own text
    is_forwarded=True,
)
FUNCTIONS = (_REFUSE_SHARD, _STATEMENT_AT_SHARD, _KEPT_PLAN, _WRITE, _READ, _LIST)
