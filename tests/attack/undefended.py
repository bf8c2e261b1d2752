"""Runs the agent with one of its defences switched off, so that a test can show what the defence is worth.

    python undefended.py ATTACK agent run --config agent.toml        the agent; its checking process is this as well
    python undefended.py ATTACK check                                that process

The product has no such switch: what is broken is patched in these two processes alone, before they run their shipped
`main`.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from attack.defences import DEFENCES, LINE


def main() -> int:
    attack, program, *arguments = sys.argv[1:]
    {**DEFENCES, **LINE}[attack].switch_off()
    from muster_agent.io import trust_process

    if program == "check":
        return trust_process.main()
    from muster_agent import daemon
    from muster_agent.cli.program import main as agent

    command = (sys.executable, str(Path(__file__).absolute()), attack, "check")
    vars(daemon)["CheckProcess"] = partial(trust_process.CheckProcess, command)
    return agent(arguments)


if __name__ == "__main__":
    sys.exit(main())
