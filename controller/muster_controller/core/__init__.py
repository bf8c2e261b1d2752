"""What the controller decides: the gate's statistics, policies and the rollout machine, as pure functions.

Nothing here touches a database, a socket, a clock or a framework; `fleet.py` carries out what is decided.
"""
