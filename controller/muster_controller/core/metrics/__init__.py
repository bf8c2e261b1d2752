"""What noised sums and operational series tell: figures with intervals, comparisons, slices, roll-ups. Pure values.

No rows, no topics and no clock: `db.metrics_store` keeps them, `muster_controller.metrics` takes them in.
"""
