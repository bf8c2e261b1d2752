"""Arguments and options that many commands share, with their completion."""

from typing import Annotated

import typer

from muster_controller.cli import completion

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RolloutArgument = Annotated[
    str,
    typer.Argument(help="The rollout's id, as `muster rollout list` shows it.", autocompletion=completion.rollouts),
]
ModelArgument = Annotated[str, typer.Argument(help="The model.", autocompletion=completion.models)]
VersionArgument = Annotated[str, typer.Argument(help="A published release of it.", autocompletion=completion.versions)]
DeviceArgument = Annotated[str, typer.Argument(help="Its id.", autocompletion=completion.devices)]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Of this model only.", autocompletion=completion.models)
]
Reason = Annotated[str, typer.Option("--reason", "-r", help="For the history.")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many.")]
