"""A PKCS#11 token of files, by SoftHSM, for tests of keys that cannot be read out."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PIN = "274-618"
LABEL = "harbour fleet"
_MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)
MODULE = next((path for path in _MODULES if Path(path).exists()), None)
WHY_NOT = (
    "SoftHSM is not installed (apt-get install softhsm2)"
    if MODULE is None or shutil.which("softhsm2-util") is None
    else ""
)


@dataclass(frozen=True)
class SoftToken:
    """A token, and the file with its PIN. The module reads `SOFTHSM2_CONF` once a process, when it is loaded."""

    folder: Path
    pin_file: Path

    def uri(self, label: str = "muster-identity", **query: str) -> str:
        how = {"module-path": str(MODULE), "pin-source": f"file:{self.pin_file}"} | query
        asked = "&".join(f"{name}={value}" for name, value in how.items())
        return f"pkcs11:token={LABEL.replace(' ', '%20')};object={label}?{asked}"


def make_token(folder: Path) -> SoftToken:
    """Make a token below `folder`, and let this process and its children use it."""
    (folder / "tokens").mkdir(parents=True)
    configuration = folder / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    command = ["softhsm2-util", "--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", PIN]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    pin_file = folder / "pin"
    pin_file.touch(0o600)
    pin_file.write_text(f"{PIN}\n")
    return SoftToken(folder, pin_file)
