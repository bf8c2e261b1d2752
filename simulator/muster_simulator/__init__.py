"""Muster in virtual time: the shipped conductor and fleet under faults (`world.py`), replayed by one seed.

Beside it: the reference workloads, simulated devices on a real broker (`load`), and the demo. No device installs it.
"""
