"""The rollout benchmark: our gate and its peers' rules on the same seeded histories, and what a rollout costs to run.

`python -m bench.rollout` (in `tests/`) is `make bench-rollout`. Each part is a module with
`run(options) -> list[Line]`; see `figures`.
"""
