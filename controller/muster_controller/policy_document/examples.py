"""The packaged examples: documents with comments, to start from."""

from importlib import resources

from muster_controller import policies


def examples() -> dict[str, str]:
    """Return the packaged examples by name."""
    folder = resources.files(policies)
    return {
        entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    }
