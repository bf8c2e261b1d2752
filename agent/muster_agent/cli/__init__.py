"""`muster-agent`: run the daemon, and ask it. Everything but `run` is a caller of the local endpoint like any other.

What is slow to import waits for its use: no command pays for another.
"""

from muster_agent.cli.program import main

__all__ = ["main"]
