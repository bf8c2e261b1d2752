"""The runbooks of `docs/runbooks`, which the wheel brings along: what to do, also where the internet is far away."""

from pathlib import Path

_HERE = Path(__file__).parent
FOLDERS = (_HERE / "runbooks", _HERE.parents[2] / "docs" / "runbooks")
"""In a wheel; in the repository."""


def names() -> list[str]:
    """Return every runbook there is, sorted."""
    folder = next((each for each in FOLDERS if each.is_dir()), None)
    return [] if folder is None else sorted(path.stem for path in folder.glob("*.md") if path.stem != "README")


def read(name: str) -> str | None:
    """Return the Markdown of a runbook; None: there is no such one."""
    if name not in names():
        return None
    folder = next(each for each in FOLDERS if each.is_dir())
    return (folder / f"{name}.md").read_text(encoding="utf-8")
