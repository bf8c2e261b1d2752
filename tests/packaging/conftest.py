"""The tools of the supply chain are scripts, not a package: their folder is on the path while they are tested."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "deploy/supply_chain"))
