"""Rehearsals: a rollout policy tried on the shape of an operator's own fleet, a thousand times, before it is used.

The shipped rollout machine decides; devices are statistics. No device, broker or controller is touched.
"""
