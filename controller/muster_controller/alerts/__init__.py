"""Alerts, done: facts are gathered, `core.alerts` decides, rows are kept, receivers are told.

No threshold and no rule lives here.
"""
