"""The tables, and nothing else.

Text is compared byte for byte (``C`` collation). Columns that access policies
read are NOT NULL, so that SQL and Python have the same two truth values. Every
unique key of ``items`` and ``requests`` begins with ``conversation_id``: the
tables can be distributed by it and each hot statement stays on one shard.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Index,
    Interval,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

Name = Text(collation="C")
Time = DateTime(timezone=True)
EPOCH_BITS = 48  # of a position in the log of changes, those of the transaction id

metadata = MetaData()

conversations = Table(
    "conversations",
    metadata,
    Column("id", Name, primary_key=True),
    Column("tenant", Name, nullable=False),
    Column("owner", Name, nullable=False),  # '' when unowned
    Column("attributes", ARRAY(Name), nullable=False),  # name=value, sorted
    Column("metadata", JSONB, nullable=False),  # string to string
    Column("last_sequence", BigInteger, nullable=False),  # of the newest item ever
    Column("version", BigInteger, nullable=False),  # every change, of items too
    Column("revision", BigInteger, nullable=False),  # of metadata and attributes; the etag
    Column("create_time", Time, nullable=False),
    Column("update_time", Time, nullable=False),  # moves with revision
    Column("delete_time", Time),  # a tombstone from then on
    # The highest version of its items' tombstones that the purge has removed: a watch cannot begin before it.
    Column("purged_version", BigInteger, nullable=False, server_default=text("0")),
    Column("position", BigInteger),  # of its last change in `changes`; set while changes are kept
    # From then on it is not found; no index may have the column, since appends move it.
    Column("expire_time", Time, nullable=False, server_default=text("'infinity'")),
    Column(
        "idle_ttl", Interval, nullable=False, server_default=text("'0'")
    ),  # appends move expire_time; 0: they do not
    Column("limit_time", Time, nullable=False, server_default=text("'infinity'")),  # expire_time is never later
    Column("forked_from", Name),  # id of the source of a fork, whether that still exists or not
    Column("forked_sequence", BigInteger),  # of the last place that was copied
    # When items were last appended; NULL if none were since the creation. No index may have it either.
    Column("active_time", Time),
    # An append changes no indexed column, so it is a heap-only update when the
    # page has room: keep some.
    postgresql_with={"fillfactor": "70"},
)

live = conversations.c.delete_time.is_(None)
Index(
    "conversations_by_tenant",
    conversations.c.tenant,
    conversations.c.create_time,
    conversations.c.id,
    postgresql_where=live,
)
Index(
    "conversations_by_owner",
    conversations.c.tenant,
    conversations.c.owner,
    conversations.c.create_time,
    conversations.c.id,
    postgresql_where=live,
)
# Ids that the service made for items end as that of their conversation does.
Index(
    "conversations_by_tag",
    conversations.c.tenant,
    func.right(conversations.c.id, literal_column("16")),
    postgresql_where=live,
)
# The forks of a conversation, in the order of lists.
Index(
    "conversations_by_source",
    conversations.c.tenant,
    conversations.c.forked_from,
    conversations.c.create_time,
    conversations.c.id,
    postgresql_where=conversations.c.forked_from.is_not(None) & live,
)
# For an erasure, which removes deleted ones as well.
Index(
    "conversations_deleted_by_owner",
    conversations.c.tenant,
    conversations.c.owner,
    conversations.c.create_time,
    conversations.c.id,
    postgresql_where=conversations.c.delete_time.is_not(None),
)
Index("conversations_deleted", conversations.c.delete_time, postgresql_where=conversations.c.delete_time.is_not(None))

# A copy of conversations.attributes, a row for each value, in the order of lists:
# a caller's page is read from the front of a few of these, however many there are.
conversation_attributes = Table(
    "conversation_attributes",
    metadata,
    Column("conversation_id", Name, primary_key=True),
    Column("attribute", Name, primary_key=True),  # name=value
    Column("tenant", Name, nullable=False),
    Column("create_time", Time, nullable=False),  # of the conversation
    Column("active_time", Time),  # as in `activity`; NULL for the create_time
)
Index(
    "conversation_attributes_by_value",
    conversation_attributes.c.tenant,
    conversation_attributes.c.attribute,
    conversation_attributes.c.create_time,
    conversation_attributes.c.conversation_id,
)

listed_active_time = func.coalesce(conversation_attributes.c.active_time, conversation_attributes.c.create_time)
Index(
    "conversation_attributes_by_activity",
    conversation_attributes.c.tenant,
    conversation_attributes.c.attribute,
    listed_active_time,
    conversation_attributes.c.conversation_id,
)

# A row for each conversation that is not deleted, in the order of lists by active_time. A trigger makes and removes it;
# appends leave it to `server.store.activity`, which moves the time (docs/adr/0039).
activity = Table(
    "activity",
    metadata,
    Column("conversation_id", Name, primary_key=True),
    Column("tenant", Name, nullable=False),
    Column("owner", Name, nullable=False),
    Column("active_time", Time, nullable=False),
)
Index("activity_by_tenant", activity.c.tenant, activity.c.active_time, activity.c.conversation_id)
Index("activity_by_owner", activity.c.tenant, activity.c.owner, activity.c.active_time, activity.c.conversation_id)

# The queue: conversations whose times in `activity` and `conversation_attributes` may have to be moved.
pending = Table(
    "pending",
    metadata,
    Column("conversation_id", Name, primary_key=True),
    Column("since", Time, nullable=False, server_default=text("now()")),
    # Rows come and go: without frequent vacuums, each pass over the queue would read what has gone since the last one.
    postgresql_with={"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "10000"},
)

# One row: up to which conversation the times were compared with those of its items, after the migration, or after
# appends had left nothing in the queue.
activity_progress = Table(
    "activity_progress",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("conversation_id", Name, nullable=False),
    Column("is_done", Boolean, nullable=False),
)

# When the purge looks whether a conversation has expired: never later than its expire_time.
expirations = Table(
    "expirations",
    metadata,
    Column("conversation_id", Name, primary_key=True),
    Column("check_time", Time, nullable=False),
)
Index("expirations_by_time", expirations.c.check_time)

# How far the limit of a tenant in the retention file has been applied to its conversations.
retention_limits = Table(
    "retention_limits",
    metadata,
    Column("tenant", Name, primary_key=True),
    Column("at_most", Interval, nullable=False),
    Column("applied_through", Time, nullable=False),  # create_time; newer ones are looked at by the next purge
)

items = Table(
    "items",
    metadata,
    Column("conversation_id", Name, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),  # dense, from 1
    Column("item_id", Name, nullable=False),
    Column("version", BigInteger, nullable=False),  # of the conversation at the last change
    Column("type", Name, nullable=False),  # the OpenAI type
    Column("role", Name, nullable=False),  # '' when the type has none
    Column("status", Name, nullable=False),  # '' when it has none
    Column("create_time", Time, nullable=False),
    Column("delete_time", Time),  # set: a tombstone with an empty body
    Column("body", LargeBinary, nullable=False),  # conversations.v1.Item without sequence
    # Who appended it, or the item that it is a copy of; '' for the owner of the conversation, which is nearly always.
    Column("author", Name, nullable=False, server_default=text("''")),
)
# One living item of an id, and any number of tombstones.
Index(
    "items_by_id",
    items.c.conversation_id,
    items.c.item_id,
    items.c.delete_time,
    unique=True,
    postgresql_nulls_not_distinct=True,
)
# Deletions in the order in which watches tell them. No append touches it.
Index(
    "items_deletions",
    items.c.conversation_id,
    items.c.version,
    items.c.sequence,
    postgresql_where=items.c.delete_time.is_not(None),
)
Index("items_deleted", items.c.delete_time, postgresql_where=items.c.delete_time.is_not(None))

# What somebody appended to the conversations of others, in all tenants.
Index(
    "items_by_author",
    items.c.author,
    items.c.conversation_id,
    items.c.sequence,
    postgresql_where=items.c.author != literal_column("''"),
)

requests = Table(
    "requests",
    metadata,
    Column("conversation_id", Name, primary_key=True),
    Column("principal", Name, primary_key=True),
    Column("method", SmallInteger, primary_key=True),  # server.store.idempotency.Method
    Column("request_id", UUID(as_uuid=False), primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),  # of the whole request
    Column("first_sequence", BigInteger, nullable=False),  # of the items it made, 0 when none
    Column("item_count", SmallInteger, nullable=False),
    Column("create_time", Time, nullable=False, server_default=text("now()")),
)
Index("requests_by_time", requests.c.create_time, postgresql_using="brin")

# The log of changes, written by triggers while changes are kept (`server.store.change_log`, docs/adr/0032).
changes = Table(
    "changes",
    metadata,
    # The epoch of the log in the upper bits, a transaction id in the lower: see `EPOCH_BITS`.
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("conversation_id", Name, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),  # of the conversation after the change
    Column("previous_sequence", BigInteger, nullable=False),  # its last_sequence before the change, 0 if it is new
    Column("last_sequence", BigInteger, nullable=False),  # and after it
    Column("tenant", Name, nullable=False),
    Column("owner", Name, nullable=False),
    Column("attributes", ARRAY(Name), nullable=False),
    # Before the change, if one of the three was another; a caller who could read it then is told that it is gone.
    Column("old_tenant", Name),
    Column("old_owner", Name),
    Column("old_attributes", ARRAY(Name)),
    Column("change_time", Time, nullable=False),  # when the transaction began
)

# One row.
change_log = Table(
    "change_log",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("is_on", Boolean, nullable=False),
    Column("epoch", BigInteger, nullable=False),  # rises whenever changes may have been missed
    Column("floor", BigInteger, nullable=False),  # a position: all changes from there on are kept
    Column("keep", Interval, nullable=False),  # how long
    Column("since", Time, nullable=False),  # when it was turned on or off
)

# A row for each conversation whose import has not ended (`server.store.imports`, docs/adr/0036).
imports = Table(
    "imports",
    metadata,
    Column("conversation_id", Name, primary_key=True),
    Column("tenant", Name, nullable=False),
    Column("head", LargeBinary, nullable=False),  # as `server.store.checksum.kept_head`; '' when it is abandoned
    Column("stream", UUID(as_uuid=False), nullable=False),  # the only one that may write
    Column("stored_sequence", BigInteger, nullable=False),  # of the last item that is there
    Column("item_count", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # of head and items so far
    Column("touch_time", Time, nullable=False, server_default=text("now()")),
)

erasures = Table(
    "erasures",
    metadata,
    Column("tenant", Name, primary_key=True),
    Column("id", UUID(as_uuid=False), primary_key=True),  # the request id
    Column("principal", Name, nullable=False),  # to erase; '' for none, and once it is erased
    Column("filter", Name, nullable=False),  # of conversations to erase; likewise
    Column("fingerprint", LargeBinary, nullable=False),  # of principal and filter, keyed
    Column("requested_by", Name, nullable=False),  # a principal; '' for the command line
    Column("begin_time", Time, nullable=False, server_default=text("now()")),
    Column("end_time", Time),
    # Rows that were removed.
    Column("conversation_count", BigInteger, nullable=False, server_default=text("0")),
    Column("item_count", BigInteger, nullable=False, server_default=text("0")),
    Column("foreign_item_count", BigInteger, nullable=False, server_default=text("0")),
    Column("request_count", BigInteger, nullable=False, server_default=text("0")),
)

# One row: up to which item the authors of old items have been filled in (`server.store.authors`).
author_progress = Table(
    "author_progress",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("conversation_id", Name, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("is_done", Boolean, nullable=False),
)

page_token_keys = Table(
    "page_token_keys",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),  # the highest signs, all verify
    Column("secret", LargeBinary, nullable=False),  # 32 random bytes
)
