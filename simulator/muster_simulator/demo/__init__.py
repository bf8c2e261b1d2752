"""`muster demo`: the whole story on one machine, with real processes, a real broker, real models and real signatures.

It acts as an operator would: through the controller's HTTP API and the offline folder. No decision about devices or
releases is made here, only checked.
"""
