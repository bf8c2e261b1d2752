"""The metrics benchmark: what counting costs, what noise leaves of the truth, what detectors see, what a mixer bears.

`python -m bench.metrics` (in `tests/`) is `make bench-metrics`. Each part is a module with
`run(options) -> list[Line]`; see `bench.rollout.figures`.
"""
