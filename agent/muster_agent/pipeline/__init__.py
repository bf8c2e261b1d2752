"""The pre- and post-processing that releases declare, on real values: `pipeline.load_pipeline` is the way in.

No HTTP, no engine and no file but the bundle's own; what a step means stands in `muster_shared.pipeline`.
"""
