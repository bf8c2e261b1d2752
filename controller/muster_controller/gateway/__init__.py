"""The way between the fleet and the broker: one link, one thread that owns `Fleet`, and the queue between them.

Nothing is decided here; `fleet.Fleet` decides, and this runs it in the order in which things arrive.
"""
