"""Batch jobs: a file of rows through a model of the running agent, and the answers into another file.

They are callers like any other, in class `later`. No engine runs in here, and `muster-agent run` never imports it.
"""
