"""Cards of mixers, as commands are given them: a mixer.json, or the folder that it is in."""

from collections.abc import Sequence
from pathlib import Path

from muster_controller.mixer_card import CARD, CARD_BYTES_MAX, MixerCard, parse_card


def read_card(path: Path) -> MixerCard:
    """Return the card in a file, or in the mixer's folder. Raises WireError, OSError."""
    with (path / CARD if path.is_dir() else path).open("rb") as file:
        return parse_card(file.read(CARD_BYTES_MAX + 1))


def read_mixers(paths: Sequence[Path] | None) -> dict[str, bytes]:
    """Return the keys for sealing of these cards, by `metrics.key_id`. Raises WireError, OSError."""
    cards = [read_card(path) for path in paths or ()]
    return {card.key_id: card.public_key for card in cards}
