"""The runbooks' commands, as they are written: a runbook that has gone wrong is found here and not at night.

Each page's ```sh blocks run in a folder of their own, on a real controller; after each, what its ```text block shows
must have been said ("…" stands for anything). Whoever is asked to sign says yes, since nobody sits there.
"""

import io
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.main import get_command

from harness.bundles import write_bundle
from harness.enrolling import AskingDevice, fetch_ca, post
from muster_controller.broker.embedded import BrokerKind
from muster_controller.cli.main import app
from muster_controller.config import ServerConfig
from muster_controller.server import Controller
from muster_controller.whereabouts import read_running
from muster_shared.enrolment import Granted, parse_token
from muster_shared.ids import FleetId, ModelName

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"
PAGES = sorted(
    path.stem
    for path in RUNBOOKS.glob("*.md")
    if path.stem not in ("README", "create-keys") and not path.stem.startswith("alert-")
)
"""Not those of alerts: what they name is not there in a new fleet. `tests/unit/test_alert_runbooks.py` reads them."""
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOLDER_COMMANDS = ("mkdir", "cp", "mv", "rm")
WAIT_S = 20.0
COMMAND = get_command(app)
"""Made once: typer's runner would make it for each command, in half of the time that this test takes."""


@dataclass(frozen=True)
class Block:
    """Commands, and what they are to say."""

    commands: tuple[tuple[str, ...], ...]
    said: str


def blocks_of(page: str) -> list[Block]:
    """Return the commands of a page, in order."""
    found: list[Block] = []
    for kind, text in BLOCK.findall((RUNBOOKS / f"{page}.md").read_text(encoding="utf-8")):
        if kind == "sh":
            lines = text.replace("\\\n", " ").splitlines()
            found.append(
                Block(tuple(words for line in lines if (words := tuple(shlex.split(line, comments=True)))), "")
            )
        else:
            assert found, f"{page}: a text block before any command"
            found[-1] = Block(found[-1].commands, text)
    return found


def run(words: tuple[str, ...]) -> str:
    """Run one command and return what it said."""
    program, *arguments = words
    if program in FOLDER_COMMANDS:
        subprocess.run(words, check=True, timeout=WAIT_S)
        return ""
    assert program == "muster", f"the runbooks say {program!r}, which this test does not know"
    if arguments[:3] == ["key", "ceremony", "sign"]:
        arguments.append("--yes")
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        exit_code = COMMAND.main(arguments, prog_name="muster", standalone_mode=False)
    assert not exit_code, f"{shlex.join(words)}\n{output.getvalue()}"
    return output.getvalue()


def check(block: Block) -> None:
    """Run the commands of a block and look for what the page says that one sees."""
    output = " ".join("\n".join(map(run, block.commands)).split())
    for line in filter(None, map(str.strip, block.said.splitlines())):
        pattern = ".*?".join(re.escape(" ".join(part.split())) for part in line.split("…"))
        assert re.search(pattern, output), f"nothing said {line!r}:\n{output}"


@contextmanager
def controller_in(folder: Path) -> Iterator[None]:
    config = ServerConfig(
        data=folder / "muster-data",
        fleet=FleetId("harbour"),
        port=0,
        broker_port=0,
        device_port=0,
        seed=7,
        broker_kind=BrokerKind.AUTO,
    )
    with Controller(config):
        yield


def enrol(data: Path, name: str) -> None:
    """Let a device enrol, as its agent does."""
    running = read_running(data)
    assert running is not None
    output = run(("muster", "enroll-token", "create", "--json"))
    token = parse_token(re.search(r"muster1\.[\w-]+", output)[0])  # type: ignore[index]  # It is there, or this fails.
    port = int(running.device_url.rsplit(":", 1)[1])
    status, answer = post(port, fetch_ca(port), AskingDevice(name).asks(time.time(), token, fleet=FleetId("harbour")))
    assert status == 200, answer
    assert isinstance(answer, Granted)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A company whose keys were made by its first page, with one release and one enrolled device."""
    folder = tmp_path_factory.mktemp("company")
    for number in (1, 2):
        write_bundle(folder, ModelName("digits"), number)
    with in_folder(folder), controller_in(folder):
        for block in blocks_of("create-keys"):
            check(block)
        for words in (
            "muster key ceremony begin release first.json digits-1 --operator desk",
            "muster key ceremony sign first.json --folder anna",
            "muster key ceremony sign first.json --folder ben",
            "muster key ceremony finish first.json --operator desk",
            "muster model publish digits-1 --signed desk/metadata/1.release-digits.json",
        ):
            run(tuple(words.split()))
        enrol(folder / "muster-data", "crane-07")
    return folder


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("MUSTER_")}
    os.environ["COLUMNS"] = "200"  # Or tables cut names short.
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        del os.environ["COLUMNS"]
        os.environ.update(kept)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_do_what_it_says(page: str, begun: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(begun, tmp_path / "company")
    blocks = blocks_of(page)

    with in_folder(folder), controller_in(folder):
        for block in blocks:
            check(block)

    assert blocks, f"{page} shows no commands"


def test_every_page_is_in_the_index_and_every_link_leads_somewhere() -> None:
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")

    links = set(re.findall(r"\]\(([\w-]+\.md)\)", index))

    assert links == {f"{page}.md" for page in (*PAGES, "create-keys")}
    for page in RUNBOOKS.glob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
