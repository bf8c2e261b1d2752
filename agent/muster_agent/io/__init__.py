"""The ports of the conductor as a real device has them: disk, journal, trust, broker, host.

No decisions: what to do is said by `core/`, who does it when is said by `conductor.py`.
"""
