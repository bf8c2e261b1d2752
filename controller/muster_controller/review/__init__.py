"""The weekly review around its core: where its facts come from, when it is made, where it is kept, who is told.

What it says is decided in `core.review`. No routes, no commands.
"""
