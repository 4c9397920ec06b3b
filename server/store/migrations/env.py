"""Runs the revisions on the connection that `server.store.migrate` hands over."""

from alembic import context

from server.store.sql.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
