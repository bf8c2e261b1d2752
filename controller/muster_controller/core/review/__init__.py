"""The weekly review: what a week of metrics says beside the week before, as a value and as Markdown. Pure.

Whoever makes one (`muster_controller.review`) brings the facts; nothing here reads a clock or a database.
"""
