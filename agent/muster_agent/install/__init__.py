"""The agent as something that people install, keep, diagnose and replace by its next version.

Nothing of the running daemon lives here, and the daemon imports none of it.
"""
