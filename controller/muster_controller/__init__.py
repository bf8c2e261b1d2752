"""The Muster fleet controller: registry, staged rollouts, MQTT gateway, web page, HTTP API and the `muster` command.

Start reading at `core/rollout.py` (what is decided) and `fleet.py` (who carries it out).
"""

__version__ = "0.1.0"
