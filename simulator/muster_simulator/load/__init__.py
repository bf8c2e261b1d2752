"""Many devices in one process on a real broker: the shipped conductor and link each, over memory instead of disks.

No engine runs here; what a release answers comes from tables of real inference (`truth`). Nothing simulates time.
"""
