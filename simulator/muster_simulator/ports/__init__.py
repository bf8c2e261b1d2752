"""The ports of conductor and fleet in memory, with faults: broker, disk, journal, ledger, registry, trust, lab, fuse.

No world lives here: a port knows what it stores and how it fails, `world.py` says when.
"""
