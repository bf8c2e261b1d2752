"""A whole controller in one process, put together: `Controller` for programs, `serve` for the command line.

Here stands what is opened in which order. What any of it does stands elsewhere.
"""

from muster_controller.server.controller import Controller, serve

__all__ = ["Controller", "serve"]
