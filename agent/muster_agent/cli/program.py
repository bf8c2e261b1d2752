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
DATA_DIR = Path("/var/lib/muster-agent")
_EPILOG = """\
exit codes:
  0  it worked
  1  the agent refused the request, or ended by a fault
  2  the command line, the configuration or a file is wrong
  3  no agent answers at the endpoint; enrol, renew: no controller does
  4  another agent has the data folder
  5  batch: stopped before the end, because the agent was busy or away for too long; the same command goes on
  6  batch: the release, the input or the command is not the one that the job began with; nothing more was written
  7  enrol, renew: somebody has to accept this device at the controller first
130  interrupted; batch: the same command goes on

A token for the agent is taken from MUSTER_AGENT_TOKEN.
"""
_CONFIGURATION = """\
a configuration that is enough:
  fleet = "default"
  device = "camera-07"
  device_class = "x86-cpu"
  data_dir = "/var/lib/muster-agent"
for a device that is enrolled; for one that is not, also:
  broker_url = "mqtt://127.0.0.1:1883"
  bootstrap_root = "/etc/muster-agent/root.json"
"""
_ENROL = """\
examples:
  muster-agent enrol --controller https://fleet.example:8443 --token - < token
  MUSTER_ENROL_TOKEN=muster1.... muster-agent enrol --controller https://fleet.example:8443 --labels site=berlin
  muster-agent enrol --controller https://fleet.example:8443 --token - --key \\
    'pkcs11:token=fleet;object=muster-identity?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/muster-agent/pin'

It makes the identity key if there is none, checks the controller's CA against the token, and keeps the certificate in
DATA_DIR/identity. Where CONFIG is missing it is written. A token on the command line is for everybody to read.
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
_INSTALL = """\
examples:
  muster-agent install --controller https://fleet.example:8443 --token - < token
  muster-agent install --controller https://fleet.example:8443 --token - --labels site=berlin --dry-run
  muster-agent install                       repairs what is missing; the identity stays

It enrols this device, writes DIR/agent.toml, and lets systemd keep the agent running; where there is no systemd, a
small supervisor of its own does. As root for the machine, else (or with --user) for one user.
"""
_DOCTOR = """\
examples:
  muster-agent doctor
  muster-agent doctor --json | jq '.checks[] | select(.verdict != "ok")'
exit code 0: nothing fails; 1: something does, and the line says what to do. It changes nothing.
"""
_UPGRADE = """\
examples:
  muster-agent upgrade --from /media/usb/muster-agent-1.4.0
  muster-agent upgrade --back                to the version before

FOLDER holds bundle.json, requirements.txt, wheels/ and, where the agent does not know of the release yet, metadata/ as
the controller serves it under /api/v1/trust. Nothing is installed that the offline keys did not sign. When the new
version does not come up, or does not serve what was served, the one before takes over again.
"""
_REFERENCE = """\
examples:
  muster-agent reference model.onnx --inputs held-out.npz --output reference.npz

FILE holds input.<name> for each input of the model, axis 0 the rows, and group, one number or text a row: the site,
camera or day that it is from. 1,000 rows of 20 groups are a good reference; none may be from training.
Nothing of a single row is in the reference but the tails of its mean and spread. It becomes a file of the bundle:
  [metrics]
  allow = ["classes", "confidence", "latency", "inputs", "drift", "feedback"]
  reference = "reference.npz"
"""
_METRICS = """\
examples:
  muster-agent metrics --show                what would leave this device next, and what would not
  muster-agent metrics --json | jq '.next[] | {model, kinds}'
"""
_OUTLIERS = """\
examples:
  muster-agent outliers keygen --key ring.pem        on a machine of yours; prints the lines for agent.toml
  muster-agent outliers list
  muster-agent outliers export --key ring.pem --to found/
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

    _add_identity(
        add("enrol", "get this device's certificate with a token of the controller", _ENROL),
        add("identity", "show who this device is for its fleet"),
        add("renew", "get a new certificate now; a running agent takes it over by itself"),
    )
    _add_install(
        add("install", "enrol this device and keep its agent running", _INSTALL),
        add("uninstall", "stop the agent and remove its service; data stays"),
        add("supervise", "keep the agent running where there is no systemd"),
    )
    doctor = add("doctor", "look for what is wrong on this device", _DOCTOR)
    _add_config(doctor)
    doctor.add_argument("--json", action="store_true", help="every check, as JSON")
    doctor.add_argument("--offline", action="store_true", help="ask neither the controller nor the broker")
    _add_upgrade(add("upgrade", "replace the agent by a signed version of it", _UPGRADE))
    _add_batch(add("batch", "run the rows of a file through a model, when the device has time", _BATCH))
    _add_reference(add("reference", "make the reference file of a release, for those who publish it", _REFERENCE))
    metrics = add("metrics", "show the anonymous windows that would leave this device next", _METRICS)
    metrics.add_argument("--show", action="store_true", default=True, help="for people (the default)")
    metrics.add_argument("--json", action="store_true", help="all of it, as JSON")
    _add_endpoint(metrics)
    _add_outliers(add("outliers", "look at odd inputs that this device kept for you", _OUTLIERS))

    completion = add("completion", "print a completion script for a shell")
    completion.add_argument("shell", choices=sorted(_COMPLETIONS))
    return parser


def _add_identity(
    enrol: argparse.ArgumentParser, identity: argparse.ArgumentParser, renew: argparse.ArgumentParser
) -> None:
    enrol.add_argument("--controller", metavar="URL", help="https://HOST:8443; default: identity.device_url of CONFIG")
    enrol.add_argument("--token", metavar="TOKEN", help="- reads it from stdin; default: MUSTER_ENROL_TOKEN")
    enrol.add_argument("--wait", type=_seconds, default=0.0, metavar="S", help="for somebody to accept it; default: 0")
    new = enrol.add_argument_group("a device without a CONFIG")
    new.add_argument("--device", metavar="NAME", help="default: the host's name")
    new.add_argument("--class", dest="device_class", metavar="CLASS", help="default: the architecture, with -cpu")
    new.add_argument("--data-dir", type=Path, default=DATA_DIR, metavar="DIR", help=f"default: {DATA_DIR}")
    new.add_argument("--labels", type=_labels, default={}, metavar="K=V,..", help="also beside those of a CONFIG")
    new.add_argument("--serial", metavar="TEXT", default="", help="of the hardware; default: as its firmware says")
    new.add_argument("--key", metavar="KEY", help="file (the default), or a PKCS#11 URI")
    for command in (enrol, identity, renew):
        _add_config(command)
        command.add_argument("--json", action="store_true", help="print the facts as JSON")


def _add_install(
    install: argparse.ArgumentParser, uninstall: argparse.ArgumentParser, supervise: argparse.ArgumentParser
) -> None:
    install.add_argument("--controller", metavar="URL", help="https://HOST:8443")
    install.add_argument("--token", metavar="TOKEN", help="- reads it from stdin; default: MUSTER_ENROL_TOKEN")
    install.add_argument("--device", metavar="NAME", help="default: the host's name")
    install.add_argument("--class", dest="device_class", metavar="CLASS", help="default: the architecture, with -cpu")
    install.add_argument("--labels", type=_labels, default={}, metavar="K=V,..")
    install.add_argument("--serial", metavar="TEXT", default="", help="of the hardware; default: as its firmware says")
    install.add_argument("--key", metavar="KEY", help="file (the default), or a PKCS#11 URI")
    install.add_argument("--wait", type=_seconds, default=600.0, metavar="S", help="to be accepted; default: 600")
    install.add_argument(
        "--serve-wait", type=_seconds, default=30.0, metavar="S", help="for the first model to serve; default: 30"
    )
    place = install.add_argument_group("where")
    place.add_argument("--user", action="store_true", help="for this user alone; the default for others than root")
    place.add_argument("--data-dir", type=Path, metavar="DIR", help=f"default: {DATA_DIR}")
    place.add_argument("--config-dir", type=Path, metavar="DIR", help=f"default: {CONFIG.parent}")
    place.add_argument("--program-dir", type=Path, metavar="DIR", help="of its versions; default: /opt/muster-agent")
    place.add_argument("--supervisor", choices=("auto", "systemd", "own", "none"), default="auto", help="default: auto")
    install.add_argument("--dry-run", action="store_true", help="show what would be done")
    install.add_argument("--json", action="store_true", help="print the facts as JSON")

    _add_config(uninstall)
    uninstall.add_argument("--purge", action="store_true", help="remove configuration, identity and models as well")
    uninstall.add_argument("--yes", action="store_true", help="do not ask before --purge")
    uninstall.add_argument("--dry-run", action="store_true", help="show what would be done")

    _add_config(supervise)
    supervise.add_argument("--detach", action="store_true", help="in the background, unless one runs already")


def _add_upgrade(upgrade: argparse.ArgumentParser) -> None:
    _add_config(upgrade)
    what = upgrade.add_mutually_exclusive_group(required=True)
    what.add_argument("--from", dest="folder", type=Path, metavar="FOLDER", help="the signed wheel set")
    what.add_argument("--back", action="store_true", help="to the version before")
    what.add_argument("--count-start", action="store_true", help=argparse.SUPPRESS)  # The service asks it first.
    what.add_argument("--recover", action="store_true", help="finish, or undo, an upgrade that was interrupted")
    upgrade.add_argument("--to", metavar="VERSION", help="refuse a folder of another version")
    upgrade.add_argument("--ready-wait", type=_seconds, default=120.0, metavar="S", help="default: 120")
    upgrade.add_argument("--allow-older", action="store_true", help="take a release that is older than this one")
    upgrade.add_argument("--dry-run", action="store_true", help="verify the folder and end")


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


def _add_reference(reference: argparse.ArgumentParser) -> None:
    reference.add_argument("model", type=Path, metavar="MODEL", help="the release's .onnx file")
    reference.add_argument("--inputs", type=Path, metavar="FILE", required=True, help=".npz, not of the training data")
    reference.add_argument("--output", type=Path, metavar="FILE", required=True, help="reference.npz")
    reference.add_argument("--windows", type=_count, default=1000, metavar="N", help="to draw; default: 1000")
    reference.add_argument("--force", action="store_true", help="replace the output")


def _add_outliers(outliers: argparse.ArgumentParser) -> None:
    acts = outliers.add_subparsers(dest="act", required=True, metavar="ACT")
    keygen = acts.add_parser("keygen", help="make the key of who may read the ring")
    keygen.add_argument("--key", type=Path, metavar="FILE", required=True, help="a new file; keep it off the device")
    listing = acts.add_parser("list", help="show what is in the ring; with the key, of which models")
    listing.add_argument("--json", action="store_true", help="as JSON")
    export = acts.add_parser("export", help="open every entry, as .npz files")
    export.add_argument("--to", type=Path, default=Path("outliers"), metavar="DIR", help="default: outliers")
    for act in (listing, export):
        act.add_argument("--key", type=Path, metavar="FILE", help="as `keygen` made it")
        _add_config(act)


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


def _labels(text: str) -> dict[str, str]:
    found = dict(item.partition("=")[::2] for item in text.split(","))
    if not all(name.strip() for name in found) or text.count("=") < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE[,NAME=VALUE...]")
    return {name.strip(): value.strip() for name, value in found.items()}


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


def _enrol(options: argparse.Namespace) -> None:
    from muster_agent.cli.enrol import enrol

    enrol(options)


def _identity(options: argparse.Namespace) -> None:
    from muster_agent.cli.enrol import identity

    identity(options)


def _renew(options: argparse.Namespace) -> None:
    from muster_agent.cli.enrol import renew

    renew(options)


def _install(options: argparse.Namespace) -> None:
    from muster_agent.cli.install import install

    install(options)


def _uninstall(options: argparse.Namespace) -> None:
    from muster_agent.cli.installed import uninstall

    uninstall(options)


def _supervise(options: argparse.Namespace) -> None:
    from muster_agent.cli.installed import supervise

    supervise(options)


def _doctor(options: argparse.Namespace) -> None:
    from muster_agent.cli.doctor import doctor

    doctor(options)


def _upgrade(options: argparse.Namespace) -> None:
    from muster_agent.cli.upgrade import upgrade

    upgrade(options)


def _batch(options: argparse.Namespace) -> None:
    from muster_agent.cli.batch import batch

    batch(options)


def _reference(options: argparse.Namespace) -> None:
    from muster_agent.cli.reference import reference

    reference(options)


def _metrics(options: argparse.Namespace) -> None:
    from muster_agent.cli.metrics import metrics

    metrics(options)


def _outliers(options: argparse.Namespace) -> None:
    from muster_agent.cli.outliers import outliers

    outliers(options)


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
    "enrol": _enrol,
    "identity": _identity,
    "renew": _renew,
    "install": _install,
    "uninstall": _uninstall,
    "supervise": _supervise,
    "doctor": _doctor,
    "upgrade": _upgrade,
    "batch": _batch,
    "reference": _reference,
    "metrics": _metrics,
    "outliers": _outliers,
    "completion": _completion,
}
