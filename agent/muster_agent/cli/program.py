"""The command line of `muster-agent`: what can be said, and who does it."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from muster_agent import __version__
from muster_agent.cli.exits import BUSY, FAILED, INTERRUPTED, OK, USAGE, CommandFailed

CONFIG = Path("/etc/muster-agent/agent.toml")
_EPILOG = """\
exit codes:
  0  it worked
  1  the agent refused the request, or ended by a fault
  2  the command line, the configuration or a file is wrong
  3  no agent answers at the endpoint
  4  another agent has the data folder
  5  batch: stopped before the end, because the agent was busy or away for too long; the same command goes on
  6  batch: the release, the input or the command is not the one that the job began with; nothing more was written
130  interrupted; batch: the same command goes on

A token for the agent is taken from MUSTER_AGENT_TOKEN.
"""
_CONFIGURATION = """\
a configuration that is enough:
  fleet = "default"
  device = "camera-07"
  device_class = "x86-cpu"
  broker_url = "mqtt://127.0.0.1:1883"
  data_dir = "/var/lib/muster-agent"
  bootstrap_root = "/etc/muster-agent/root.json"
"""
_BATCH = """\
examples:
  muster-agent batch digits scans.npy answers.npy
  muster-agent batch churn customers.parquet scored.parquet --keep customer_id
  muster-agent batch churn customers.csv scored.csv --columns age,visits,spent --keep name
  muster-agent batch churn crm.sqlite crm.sqlite --table customers --keep id --into scores
  muster-agent batch fruit photos/ found.jsonl
  muster-agent batch digits scans.npy answers.npy --dry-run

IN    .npy .npz .csv .tsv .parquet, a database (.sqlite .db), or a folder of images (the release's own pipeline)
OUT   .npy .parquet .csv .tsv .jsonl, or a database
Without --columns and --input, columns named as the model's inputs feed them; else its only input gets the one array
column that fits, or all columns of numbers that are not kept, in the order of the file.
Requests are of class `later`: live requests go first. While the job runs, OUT.progress says up to which row everything
is on disk; after a crash the same command goes on there, and the result is the same, byte for byte (of a database: row
for row).
"""
_TOP = """\
keys: q ends, space holds the picture
examples:
  muster-agent top
  muster-agent top --once --json | jq '.models[] | {model, requests_per_s}'
"""
_PREDICT = """\
examples:
  muster-agent predict fruit apple.jpg pear.png
  muster-agent predict fruit *.jpg --json | jq -r '.predictions.label'
"""
_TRIAL = """\
examples:
  muster-agent trial digits                  how the candidate does
  muster-agent trial digits --shadow 10%     copies of a tenth of the requests go to it; nobody sees its answers
  muster-agent trial digits --canary 5%      it answers a twentieth of the requests
  muster-agent trial digits --end
"""
_CONSENT = """\
examples:
  muster-agent consent digits 2.1.0                       may it take over now?
  muster-agent consent --stage download digits 2.1.0
  muster-agent consent digits 2.1.0 --json | jq .go_on
"""
_COMPLETIONS = {
    "bash": "complete -W '{words}' -o default muster-agent",
    "zsh": "#compdef muster-agent\ncompctl -k '({words})' -f muster-agent",
    "fish": "complete -c muster-agent -n __fish_use_subcommand -f -a '{words}'",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _COMMANDS[options.command](options)
    except CommandFailed as error:
        print(f"muster-agent: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:
        # Whoever read has enough; the interpreter's last flush must not complain of it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="muster-agent",
        description="Serves models to local applications and keeps them current from signed releases.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"muster-agent {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    run = add("run", "run the daemon until SIGTERM", _CONFIGURATION)
    _add_config(run)

    status = add("status", "show what the agent on this device does")
    _add_endpoint(status)
    status.add_argument("--json", action="store_true", help="print the agent's answer as it is")

    top = add("top", "watch the models of this device at work", _TOP)
    top.add_argument("--once", action="store_true", help="print one picture, of one interval, and end")
    top.add_argument("--interval", type=_seconds, default=1.0, metavar="S", help="default: 1")
    top.add_argument("--json", action="store_true", help="a JSON object on a line for each interval")
    _add_endpoint(top)

    infer = add("infer", "ask a model on this device for an inference")
    infer.add_argument("model", metavar="MODEL")
    given = infer.add_mutually_exclusive_group(required=True)
    given.add_argument("--input", type=Path, metavar="FILE", help=".npy (one input), .npz (by input name), or .json")
    given.add_argument("--json", metavar="REQUEST", help="a V2 request, or only its inputs, as JSON")
    _add_endpoint(infer)

    predict = add("predict", "ask a model for what is in files, through its release's own pipeline", _PREDICT)
    predict.add_argument("model", metavar="MODEL")
    predict.add_argument(
        "files", metavar="FILE", nargs="+", help="as the release accepts: JPEG, PNG, text, WAV; - is stdin"
    )
    predict.add_argument("--json", action="store_true", help="the agent's answer and the file's name, one line a file")
    _add_endpoint(predict)

    trial = add("trial", "try the release that does not serve beside the one that does", _TRIAL)
    trial.add_argument("model", metavar="MODEL")
    act = trial.add_mutually_exclusive_group()
    act.add_argument("--shadow", type=_share, metavar="SHARE", help="10%% or 0.1 of the requests, unseen by callers")
    act.add_argument("--canary", type=_share, metavar="SHARE", help="5%% or 0.05 of the requests get its answers")
    act.add_argument("--end", action="store_true", help="end the trial")
    trial.add_argument("--json", action="store_true", help="print the agent's answer as it is")
    _add_endpoint(trial)

    consent = add("consent", "show whether this device would let a release take over now, and why not", _CONSENT)
    consent.add_argument("model", metavar="MODEL")
    consent.add_argument("version", metavar="VERSION")
    consent.add_argument("--stage", choices=("download", "activate"), default="activate", help="default: activate")
    consent.add_argument("--json", action="store_true", help="the answer and every rule, as JSON")
    _add_endpoint(consent)

    _add_batch(add("batch", "run the rows of a file through a model, when the device has time", _BATCH))

    completion = add("completion", "print a completion script for a shell")
    completion.add_argument("shell", choices=sorted(_COMPLETIONS))
    return parser


def _add_batch(batch: argparse.ArgumentParser) -> None:
    batch.add_argument("model", metavar="MODEL")
    batch.add_argument("source", metavar="IN", type=Path)
    batch.add_argument("out", metavar="OUT", type=Path)
    rows = batch.add_argument_group("what is read and written")
    rows.add_argument("--columns", type=_names, default=(), metavar="A,B", help="feed the model's only input")
    rows.add_argument(
        "--input", action="append", type=_input, default=[], metavar="NAME=A,B", help="feed this input; once for each"
    )
    rows.add_argument("--keep", type=_names, default=(), metavar="A,B", help="columns to copy to the output")
    rows.add_argument("--output", type=_names, default=(), metavar="A,B", help="outputs to write; default: all")
    rows.add_argument("--table", default="", metavar="NAME", help="of the database IN; default: its only one")
    rows.add_argument("--query", default="", metavar="SQL", help="of the database IN, instead of a table")
    rows.add_argument("--into", default="", metavar="NAME", help="table of the database OUT; default: MODEL")
    rows.add_argument("--limit", type=_count, metavar="N", help="only the first N rows")
    how = batch.add_argument_group("how")
    how.add_argument("--rows", type=_count, metavar="N", help="of a request; default: as the device measured best")
    how.add_argument("--window", type=_count, metavar="N", help="requests under way; default: as the device can use")
    how.add_argument(
        "--wait", type=_seconds, default=300.0, metavar="S", help="for an agent that is busy or away; default: 300"
    )
    how.add_argument("--any-version", action="store_true", help="go on when another release takes over")
    how.add_argument("--resume", action="store_true", default=True, help="go on where the job stopped (the default)")
    how.add_argument("--restart", action="store_true", help="begin anew, and replace OUT")
    how.add_argument("--dry-run", action="store_true", help="show what would be done, and the first row's answer")
    how.add_argument("--json", action="store_true", help="print the summary as JSON")
    _add_endpoint(batch)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FILE", help=f"default: {CONFIG}")


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--endpoint", metavar="URL", help="http://host:port or unix:/path, instead of the configured one"
    )


# -- what options mean -------------------------------------------------------------------------------------------------


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of names with commas between them")
    return names


def _input(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, columns = text.partition("=")
    if not (name and equals and columns):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COLUMN[,COLUMN...]")
    return name, _names(columns)


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 0% to 100% nor 0 to 1")
    return share


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 53:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds


# -- who does it -------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> None:
    # structlog draws tracebacks with rich where it finds it: 5 MB and 50 ms for a daemon that writes JSON.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # "Halted", as the language reference calls it.

    from muster_agent.config import load_config
    from muster_agent.errors import AgentRunning, ConfigInvalid, JournalFailed

    try:
        config = load_config(options.config, os.environ)

        from muster_agent import daemon

        daemon.run(config, os.environ)
    except ConfigInvalid as error:
        raise CommandFailed(USAGE, str(error)) from error
    except AgentRunning as error:
        raise CommandFailed(BUSY, str(error)) from error
    except JournalFailed as error:
        raise CommandFailed(FAILED, str(error)) from error


def _status(options: argparse.Namespace) -> None:
    from muster_agent.cli.status import status

    status(options)


def _top(options: argparse.Namespace) -> None:
    from muster_agent.cli.watch import watch

    watch(options)


def _infer(options: argparse.Namespace) -> None:
    from muster_agent.cli.infer import infer

    infer(options)


def _predict(options: argparse.Namespace) -> None:
    from muster_agent.cli.predict import predict

    predict(options)


def _trial(options: argparse.Namespace) -> None:
    from muster_agent.cli.trial import trial

    trial(options)


def _consent(options: argparse.Namespace) -> None:
    from muster_agent.cli.consent import consent

    consent(options)


def _batch(options: argparse.Namespace) -> None:
    from muster_agent.cli.batch import batch

    batch(options)


def _completion(options: argparse.Namespace) -> None:
    print(_COMPLETIONS[options.shell].format(words=" ".join(_COMMANDS)))


_COMMANDS: dict[str, Callable[[Any], None]] = {
    "run": _run,
    "status": _status,
    "top": _top,
    "infer": _infer,
    "predict": _predict,
    "trial": _trial,
    "consent": _consent,
    "batch": _batch,
    "completion": _completion,
}
