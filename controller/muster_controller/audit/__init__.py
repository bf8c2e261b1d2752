"""The audit log: its chain, its checkpoints, its file, and which of the fleet's notes belong into it.

All of it values, but for `book`, which reads them from the database; `db.audit` appends and reads rows.
"""
