"""What other tools read: metric families as Prometheus text, OpenMetrics and OTLP, and noised sums as tables in files.

Nothing here decides or counts anew: it writes down what `metrics`, `alerts` and the fleet say. No routes, no commands.
"""
