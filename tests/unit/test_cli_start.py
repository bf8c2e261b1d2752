"""What the command line does not import: half of the time that `muster` takes to say a word would be for nothing."""

import json
import subprocess
import sys

HEAVY = ("fastapi", "sqlalchemy", "sqlmodel", "uvicorn")


def test_a_command_that_asks_a_controller_imports_neither_its_database_nor_its_server() -> None:
    code = "import json, sys, muster_controller.cli.main; print(json.dumps(sorted(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)

    assert [name for name in HEAVY if name in json.loads(done.stdout)] == []
