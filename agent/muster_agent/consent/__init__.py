"""How a device says "later": its own rules and its hook, its time zone, and who asks them for the conductor.

What follows from "later" is decided in `core.activation`; here nothing knows of rollouts.
"""
