"""The lineage of a model's releases as a graph: what each was made from, by its manifest. Pure.

A parent is whatever the publisher wrote: a version of the same model (`1.0.0`, `digits 1.0.0`, `digits@1.0.0`,
`models/digits/1.0.0/bundle.json`), or something else, such as a model of others, which stands at the left.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from muster_controller.web.plots import Graph, Node, Tone

ROW_HEIGHT = 60
HEIGHTS = (120, 160, 220, 300, 400)
"""Pixels that the style sheet knows."""
NODES_MAX = 60


@dataclass(frozen=True)
class Ancestry:
    """One release. `devices`: that serve it now."""

    version: str
    release: int
    parents: tuple[str, ...]
    devices: int = 0
    is_baseline: bool = False


def lineage(model: str, releases: Sequence[Ancestry], chosen: str = "") -> Graph | None:
    """Return the graph from left to right; None where no release names what it was made from.

    Args:
        releases: in whatever order; only the newest NODES_MAX are drawn.
        chosen: the version that the page is about.
    """
    shown = sorted(releases, key=lambda each: each.release)[-NODES_MAX:]
    known = {each.version for each in shown}
    parents = {each.version: [_named(model, said, known) for said in each.parents] for each in shown}
    if not any(parents.values()):
        return None
    outside = list(dict.fromkeys(said for found in parents.values() for said in found if said not in known))
    columns = _columns([*outside, *(each.version for each in shown)], parents)
    rows: dict[int, int] = {}
    nodes = []
    for name in (*outside, *(each.version for each in shown)):
        row = rows[columns[name]] = rows.get(columns[name], -1) + 1
        nodes.append(_node(model, name, next((each for each in shown if each.version == name), None), chosen))
        nodes[-1] = _placed(nodes[-1], columns[name], row)
    edges = tuple((parent, version, "") for version, found in parents.items() for parent in found)
    told = "; ".join(f"{version} from {' and '.join(found)}" for version, found in parents.items() if found)
    wanted = ROW_HEIGHT * (max(rows.values()) + 2)
    height = next((each for each in HEIGHTS if each >= wanted), HEIGHTS[-1])
    words = f"What each release of {model} was made from: {told}."
    return Graph("lineage", "From left to right", words, nodes, edges, height)


def _named(model: str, said: str, known: set[str]) -> str:
    """Return the version that a parent names, or what the publisher wrote."""
    own = re.sub(rf"^(?:models/)?{re.escape(model)}[ @:/]", "", said.strip()).removesuffix("/bundle.json")
    return own if own in known else said.strip()


def _columns(names: Sequence[str], parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return how many steps each is from the left: one more than the farthest parent. A circle is cut."""
    found: dict[str, int] = {}

    def column(name: str, above: frozenset[str]) -> int:
        if name not in found:
            steps = (column(parent, above | {name}) for parent in parents.get(name, ()) if parent not in above | {name})
            found[name] = max(steps, default=-1) + 1
        return found[name]

    for name in names:
        column(name, frozenset())
    return found


def _node(model: str, name: str, release: Ancestry | None, chosen: str) -> Node:
    if release is None:
        return Node(name, name)
    if name == chosen:
        tone = Tone.ACCENT
    elif release.is_baseline:
        tone = Tone.GOOD
    else:
        tone = Tone.BUSY if release.devices else Tone.IDLE
    says = f"{name} ({release.devices})" if release.devices else name
    return Node(name, says, f"/models/{model}/versions/{name}", tone)


def _placed(node: Node, column: int, row: int) -> Node:
    return Node(node.id, node.name, node.href, node.tone, column, row)
