"""What the agent decides: pure functions of state, event and time.

Nothing here touches a file, a socket, a clock or a framework; `conductor.py` carries out what is decided.
"""
