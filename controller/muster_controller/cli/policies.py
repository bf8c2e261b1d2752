"""`muster policy`: check a policy before it is needed, print its JSON Schema, print examples. Asks no controller."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from muster_controller.cli.output import emit, fail
from muster_controller.core.policy import PolicyInvalid
from muster_controller.policy_document import dump, parse_policy, schema, written
from muster_controller.policy_document.examples import examples
from muster_controller.policy_document.nodes import BYTES_MAX

DEFAULT_EXAMPLE = "careful"
CHECK_EPILOG = "Exit codes: 0 valid, 1 refused or not readable."

app = typer.Typer(help="Rollout policies as documents.", no_args_is_help=True)


@dataclass(frozen=True)
class Checked:
    """What `check` found. `written` is what differs from the defaults."""

    file: str
    valid: bool
    written: dict[str, Any]
    message: str | None = None
    field: str | None = None
    line: int | None = None


@app.command(epilog=CHECK_EPILOG)
def check(
    file: Annotated[Path, typer.Argument(help="The policy, YAML or JSON.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether a policy can be evaluated and satisfied, and what it says beyond the defaults."""
    try:
        with file.open("rb") as opened:
            policy = parse_policy(opened.read(BYTES_MAX + 1), str(file))
    except OSError as error:
        fail(error)
    except PolicyInvalid as error:
        if not as_json:
            fail(error)
        emit(Checked(str(file), False, {}, str(error), error.field, error.line), True, lambda _: None)
        raise typer.Exit(1) from error

    def human(console: Console) -> None:
        found = dump(policy)
        console.print(f"{file}: valid.", style="green", markup=False, highlight=False, soft_wrap=True)
        said = "All defaults." if found == "{}\n" else f"Beyond the defaults:\n{found.rstrip()}"
        console.print(said, markup=False, highlight=False, soft_wrap=True)

    emit(Checked(str(file), True, written(policy)), as_json, human)


@app.command("schema")
def print_schema() -> None:
    """Print the JSON Schema, for editors and other programs."""
    emit(schema(), True, lambda _: None)


@app.command()
def example(
    name: Annotated[str, typer.Argument(help="Which one; `list` names them.")] = DEFAULT_EXAMPLE,
) -> None:
    """Print an example with comments: save it, change it, check it."""
    found = examples()
    if name == "list":
        print("\n".join(sorted(found)))
        return
    if name not in found:
        fail(f"there is no example {name!r}; there are {', '.join(sorted(found))}")
    print(found[name], end="")
