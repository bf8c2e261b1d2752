"""Brokers: the embedded one, a Mosquitto or NATS server that runs as a managed child, and what every broker is told
about who may do what, those of the user's own included.

What travels over a broker does not live here (that is `gateway`), nor who issues and revokes certificates (`identity`).
"""
