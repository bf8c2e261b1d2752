"""What a ceremony says: to people as lines, to programs as JSON. It decides nothing and asks nobody."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from muster_controller.cli.output import emit
from muster_controller.registry import ceremony as steps
from muster_controller.registry.ceremony import Need, Stage
from muster_controller.registry.ceremony_file import Ceremony, awaited, call
from muster_controller.registry.ceremony_words import digest, explain, joined_digest, plan


@dataclass(frozen=True)
class View:
    """A ceremony for programs."""

    file: str
    purpose: str
    stage: str
    awaited: list[str]
    joined: list[str]
    joined_digest: str
    digest: str | None
    changes: dict[str, list[str]]
    needs: list[Need]
    done: list[str]
    """Names of keys that this step made or signed with."""


def show(ceremony: Ceremony, file: Path, as_json: bool, done: Sequence[str], said: str) -> None:
    """Print what the step did, and who is next."""
    stage, waits = steps.stage(ceremony), awaited(ceremony)
    view = View(
        file=str(file),
        purpose=ceremony.purpose.value,
        stage=stage.value,
        awaited=list(waits),
        joined=[each.name for each in ceremony.joined],
        joined_digest=joined_digest(ceremony),
        digest=digest(ceremony) if ceremony.parts else None,
        changes=explain(ceremony),
        needs=list(steps.needs(ceremony)),
        done=list(done),
    )

    def human(console: Console) -> None:
        console.soft_wrap = True
        if said:
            console.print(said, highlight=False, markup=False)
        if stage is Stage.JOINING:
            console.print(f"Keys so far, to compare aloud: {joined_digest(ceremony)}", highlight=False)
            console.print(
                f"Waits for {', '.join(waits)}: `muster key ceremony join {file} --holder NAME`.", highlight=False
            )
            return
        for need in view.needs:
            who = ", ".join(call(ceremony, keyid) for keyid in need.lack)
            have = f"{need.part} {need.version}: {len(need.have)} of {need.threshold} that {need.by} asks for"
            console.print(have if need.is_met else f"{have}; next may be {who}", highlight=False)
        if stage is Stage.SIGNED:
            console.print(
                f"All have signed. Next, in every folder: `muster key ceremony finish {file}`.", highlight=False
            )
        else:
            console.print(f"Next: `muster key ceremony sign {file}` on their machines.", highlight=False)

    emit(view, as_json, human)


def say_changes(console: Console, ceremony: Ceremony, words: dict[str, list[str]]) -> None:
    if not words:
        for line in plan(ceremony):
            console.print(f"  {line}", markup=False)
        return
    for part, lines in words.items():
        console.print(part, style="bold")
        for line in lines:
            console.print(f"  {line}", markup=False)
    console.print(f"Digest, to compare aloud: {digest(ceremony)}")


def next_command(ceremony: Ceremony, operator: Path) -> str:
    releases = [part for part in ceremony.parts if part not in ("root", "targets")]
    if releases and len(releases) == len(ceremony.parts) and not ceremony.changes:
        signed = " ".join(str(path) for path in sorted((operator / "metadata").glob(f"*.{releases[0]}.json"))[-1:])
        if ceremony.purpose.value == "release":
            return f"Next: `muster model publish BUNDLE --signed {signed}`."
        return f"Next: `muster model push-metadata {releases[0].removeprefix('release-')} --signed {signed}`."
    return f"Next: `muster trust push {operator}`."
