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
        types = ", ".join(argument.split()[1] for argument in self.arguments.split(", "))
        key = ", 'conversation', colocate_with := 'conversations'" if self.is_forwarded else ""
        return f"SELECT create_distributed_function('{self.name}({types})'{key})"


# A lock in the mode SHARE (5) keeps Citus from moving the shards meanwhile; every write that Citus plans takes it too.
# Whoever has waited for a move finds the shard at another node, and tries again.
_REQUIRE_SHARDS = ShardFunction(
    "require_shards_1",
    "shards bigint[], locks boolean",
    "void",
    f"""
    DECLARE
        node int := (SELECT groupid FROM pg_catalog.pg_dist_local_group);
    BEGIN
        IF node = 0 THEN
            RAISE 'the call was not forwarded' USING ERRCODE = '{NOT_FORWARDED}';
        END IF;
        IF locks THEN
            PERFORM lock_shard_metadata(5, shards);
        END IF;
        IF cardinality(shards) > (
            SELECT count(*) FROM pg_catalog.pg_dist_placement WHERE shardid = ANY(shards) AND groupid = node
        ) THEN
            RAISE 'the conversation is at another node' USING ERRCODE = 'serialization_failure';
        END IF;
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
    "statement text, texts text[], bodies bytea[]",
    "text",
    f"""
    DECLARE
        plan text := 'conversations_' || md5(statement);
        known text := current_setting('conversations.plans', true);
    BEGIN
        IF pg_column_size(texts) + pg_column_size(bodies) > {MOST_LITERAL_BYTES} THEN
            RETURN statement;
        END IF;
        IF known IS NULL OR strpos(known, plan) = 0 THEN
            IF NOT EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE name = plan) THEN
                IF (SELECT count(*) FROM pg_catalog.pg_prepared_statements) >= {MOST_PLANS} THEN
                    RETURN statement;
                END IF;
                EXECUTE format('PREPARE %I (text[], bytea[]) AS %s', plan, statement);
            END IF;
            PERFORM set_config('conversations.plans', concat_ws(' ', known, plan), false);
        END IF;
        RETURN format('EXECUTE %I(%L, %L)', plan, texts, bodies);
    END """,  # noqa: S608 - our own text
)
_WRITE = ShardFunction(
    WRITE,
    "conversation text, tables text[], statement text, texts text[], bodies bytea[], counts boolean",
    f"SETOF {ROW}",
    f"""
    DECLARE
        at_shard text := statement_at_shard_1(conversation, tables, statement);
        written record;
        result {ROW};
    BEGIN
        PERFORM require_shards_1(ARRAY[get_shard_id_for_distribution_column('conversations', conversation)], true);
        IF counts THEN
            EXECUTE at_shard USING texts, bodies;
            GET DIAGNOSTICS result.count = ROW_COUNT;
            RETURN NEXT result;
            RETURN;
        END IF;
        FOR written IN EXECUTE kept_plan_1(at_shard, texts, bodies) USING texts, bodies LOOP
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
    """
    DECLARE
        at_shard text := statement_at_shard_1(conversation, tables, statement);
        bodies bytea[] := '{}';
    BEGIN
        PERFORM require_shards_1(ARRAY[get_shard_id_for_distribution_column('conversations', conversation)], false);
        RETURN QUERY EXECUTE kept_plan_1(at_shard, texts, bodies) USING texts, bodies;
    END """,
    is_forwarded=True,
)
# Several shards of the worker of a conversation, as one table: PostgreSQL reads the front of each one's index.
_LIST = ShardFunction(
    LIST,
    "conversation text, shards bigint[], statement text, texts text[]",
    "SETOF record",
    """
    DECLARE
        bodies bytea[] := '{}';
        source text := string_agg(format('SELECT * FROM %I', 'conversations_' || shard), ' UNION ALL ')
            FROM unnest(shards) AS shard;
    BEGIN
        PERFORM require_shards_1(shards, false);
        statement := replace(statement, '{conversations}', '(' || source || ')');
        RETURN QUERY EXECUTE kept_plan_1(statement, texts, bodies) USING texts, bodies;
    END """,
    is_forwarded=True,
)
FUNCTIONS = (_REQUIRE_SHARDS, _STATEMENT_AT_SHARD, _KEPT_PLAN, _WRITE, _READ, _LIST)
