"""The rollout machine: `machine.advance` takes what happened and says what follows; `state` is what it remembers.

Everything is a pure function of values: no database, no clock, no randomness of its own.
"""
