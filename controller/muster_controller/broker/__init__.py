"""The embedded broker: a Mosquitto or NATS server that runs as a managed child, for fleets without one of their own.

What travels over it does not live here (that is `gateway`), nor does the configuration of brokers that others run.
"""
