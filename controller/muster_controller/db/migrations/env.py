"""Alembic's entry point: it runs on the connection that `db.migrate` or a test hands over, never on one of its own."""

from alembic import context

from muster_controller.db.tables import Row

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Row.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
