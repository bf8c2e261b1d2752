"""The database behind `ports.Ledger`: tables, migrations, and the conversion between rows and domain values.

Rows stay in here; nothing is decided here, and no other package imports SQLAlchemy.
"""
