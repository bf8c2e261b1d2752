"""What comes from outside, mutated: one target for each parser, run briefly by `make test` and for long by `make fuzz`.

No sockets and no real time; what a finding costs to reproduce is one file. See `docs/fuzzing.md`.
"""
