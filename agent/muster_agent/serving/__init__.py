"""The local inference endpoint: Open Inference Protocol (V2) over HTTP on the loopback or a Unix socket, hot-swappable.

Nothing here decides which release serves (the update core does, through `table`), and nothing here leaves the device.
"""
