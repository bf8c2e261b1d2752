"""The device's TUF client behind the command line that TUF's public conformance suite asks for.

    client --metadata-dir DIR --metadata-url URL init ROOT
    client --metadata-dir DIR --metadata-url URL refresh
    client --metadata-dir DIR --metadata-url URL --target-name NAME --target-dir DIR --target-base-url URL download

It drives `muster_agent.io.trust_check.DeviceUpdater`, the very updater of the agent, with its limits and its errors;
only what fetches is another: HTTP in place of what MQTT brought. Exit code 0: done, 1: refused, with the reason.

Two things are ours: `--time` (what the clock says, for tests) and `batch` (commands as JSON lists on standard input,
one a line, each answered by its exit code: a process takes a second to start).
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface

from muster_agent.io.trust_check import ORIGIN, DeviceUpdater, in_our_words
from muster_shared.errors import MetadataUntrusted, MusterError

TIMEOUT_S = 10.0
PIECE_BYTES = 16 * 1024
BOOTSTRAP = "bootstrap/root.json"
"""Below the metadata folder: what the device was provisioned with, from which the chain begins each time."""


class HttpFetcher(FetcherInterface):
    """Metadata from below one URL; everything else from where it says."""

    def __init__(self, metadata_url: str) -> None:
        self._metadata_url = metadata_url.rstrip("/") + "/"

    def _fetch(self, url: str) -> Iterator[bytes]:
        if url.startswith(ORIGIN):
            url = self._metadata_url + url.removeprefix(ORIGIN)
        try:
            answer = urllib.request.urlopen(url, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            raise DownloadHTTPError(f"{url} is answered by {error.code}", error.code) from error
        return _pieces(answer)


def _pieces(answer: "urllib.request._UrlopenRet") -> Iterator[bytes]:
    with answer:
        while piece := answer.read(PIECE_BYTES):
            yield piece


def main(arguments: list[str]) -> int:
    given = _parse(arguments)
    now = datetime.fromisoformat(given.time).astimezone(UTC) if given.time else datetime.now(UTC)
    try:
        match given.command:
            case "init":
                _init(given.metadata_dir, given.root)
            case "refresh":
                with in_our_words(now):
                    _updater(given.metadata_dir, given.metadata_url, now).refresh()
            case "download":
                with in_our_words(now):
                    updater = _updater(given.metadata_dir, given.metadata_url, now)
                    _download(updater, given.target_name, given.target_dir, given.target_base_url)
    except (MusterError, OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _init(folder: Path, root: Path) -> None:
    raw = root.read_bytes()
    for path in (folder / "root.json", folder / BOOTSTRAP):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)


def _updater(folder: Path, url: str, now: datetime) -> DeviceUpdater:
    return DeviceUpdater(folder, (folder / BOOTSTRAP).read_bytes(), HttpFetcher(url), now)


def _download(updater: DeviceUpdater, name: str, folder: Path, base_url: str) -> None:
    updater.target_dir = str(folder)
    info = updater.get_targetinfo(name)
    if info is None:
        raise MetadataUntrusted(f"no role that may says anything about {name}")
    if updater.find_cached_target(info) is None:
        updater.download_target(info, target_base_url=base_url)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="client", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--metadata-dir", type=Path)
    parser.add_argument("--metadata-url", default="")
    parser.add_argument("--target-name")
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("--target-base-url")
    parser.add_argument("--time", help="what the clock says: ISO 8601 with its offset")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    return parser.parse_args(arguments)


def batch() -> int:
    """Run the commands on standard input until it ends."""
    for line in sys.stdin:
        print(main([str(each) for each in json.loads(line)]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(batch() if sys.argv[1:] == ["batch"] else main(sys.argv[1:]))
