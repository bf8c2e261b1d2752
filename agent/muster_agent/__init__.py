"""The Muster device daemon: it serves models to local applications and keeps them current from signed releases.

Start reading at `core/update.py` (what is decided) and `conductor.py` (who carries it out).
"""

__version__ = "0.1.0"
