"""`python -m harness.mixer_alone FOLDER BROKER_URL`: the shipped mixer process, but without noise.

No option of `muster mixer run` allows such a budget. What it sums can then be counted, window by window.
"""

import signal
import sys
import threading
from pathlib import Path

from harness.mixing import CONFIG, FLEET
from muster_controller.logs import configure_logs
from muster_controller.mixer import process
from muster_controller.mixer.config import MixerConfig
from muster_controller.mixer.folder import MixerFolder
from muster_controller.mixer.place import find_place


def main() -> None:
    folder, broker_url = Path(sys.argv[1]), sys.argv[2]
    configure_logs(as_json=True, verbose=False)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    place = find_place(MixerFolder(folder), broker_url, FLEET)
    config = MixerConfig(place.mixer, FLEET, rho_day=CONFIG.rho_day, settle_s=2.0)
    process.run(config, place, stopping)


if __name__ == "__main__":
    main()
