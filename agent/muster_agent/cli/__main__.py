"""`python -m muster_agent.cli`."""

import sys

from muster_agent.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
