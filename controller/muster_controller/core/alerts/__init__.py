"""Alerts, decided: burn rates of objectives, the rules, an alert's life, and what is told together.

Pure: facts come in as values and the time as an argument. Nothing here reads a table or sends anything.
"""
