"""The serving benchmark: our agent, its peers and the bare engine, with the same models and the same load, in one run.

`python -m bench.serving` (in `tests/`) is `make bench-serving`. `apps` holds the servers that are not ours; they run in
environments of their own, so nothing there imports anything from here.
"""
