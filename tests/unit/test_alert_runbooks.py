"""The runbooks of alerts name commands and options that there are, and every rule has its page."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from muster_controller.cli.main import app
from muster_controller.core.alerts.rules import RULES

ROOT = Path(__file__).parents[2]
PAGES = sorted(each.runbook for each in RULES.values())
SHOWN = [*PAGES, "docs/alerts.md"]
COMMAND = get_command(app)
CONSOLE = re.compile(r"^```(?:console)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(muster [^`]+)`")


def commands_of(page: str) -> list[list[str]]:
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line.removeprefix("$ ") for block in CONSOLE.findall(text) for line in block.splitlines()]
    found = [line for line in lines if line.startswith("muster ")]
    found += [" ".join(each.split()) for each in INLINE.findall(CONSOLE.sub("", text))]
    return [shlex.split(line, comments=True) for line in found]


def unknown(words: list[str]) -> str | None:
    """Return the first word that is no command or no option."""
    command: Any = COMMAND
    rest = words[1:]
    context = command.make_context("muster", [], resilient_parsing=True)
    while hasattr(command, "get_command") and rest:
        found = command.get_command(context, rest[0])
        if found is None:
            return rest[0]
        command, rest = found, rest[1:]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return next((word for word in rest if word.startswith("-") and word not in options), None)


def test_every_rule_has_its_page_and_every_page_its_rule() -> None:
    pages = {f"docs/runbooks/{path.name}" for path in (ROOT / "docs" / "runbooks").glob("alert-*.md")}

    assert pages == set(PAGES)


@pytest.mark.parametrize("page", SHOWN)
def test_a_page_names_commands_and_options_that_there_are(page: str) -> None:
    commands = commands_of(page)

    assert commands
    assert [(shlex.join(words), wrong) for words in commands if (wrong := unknown(words)) is not None] == []


@pytest.mark.parametrize("page", SHOWN)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")

    links = re.findall(r"\]\(([^)#:]+)\)", text)

    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []
