"""The fleet world: ten thousand devices for weeks of virtual time, on the shipped controller and update core.

Devices have a light shell here (no files, chunks or engines); `muster_simulator.world` runs a few whole ones.
"""
