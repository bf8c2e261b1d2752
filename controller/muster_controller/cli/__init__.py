"""The `muster` command: one module for each group of commands.

Commands parse, call and print; what is decided lives in `core`, `registry` and behind the HTTP API.
"""
