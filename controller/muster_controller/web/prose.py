"""The little Markdown of our own texts and of model cards as blocks for a template: headings, lists, tables and so on.

Pure. Marks of emphasis are left out, links keep their words, and nothing is ever passed on as HTML: a card is a
publisher's. Backticks stay in sentences, where the template shows what they hold as code. What is no Markdown that is
known here is a paragraph.
"""

import re
import textwrap

Block = tuple[str, str | list[str] | list[list[str]]]
"""`h2`, `h3`, `p`, `code` with a text; `list` with items; `table` with rows, the first of which are the headings."""

_MARK = re.compile(r"(?:[-*]|\d{1,2}\.) ")
_FENCE = re.compile(r"^```[^`\n]*$", re.MULTILINE)
_HEADING = re.compile(r"(#{1,6})\s+(\S.*)")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_RULE = re.compile(r"\|?[\s:|-]+\|[\s:|-]*")


def blocks(text: str) -> list[Block]:
    """Return the blocks of `text`, in order. The first heading of the first level is left out: the page has its own."""
    found: list[Block] = []
    for number, piece in enumerate(_FENCE.split(text.strip())):
        found += [("code", piece.strip("\n"))] if number % 2 else _blocks(piece)
    return found


def _blocks(text: str) -> list[Block]:
    found: list[Block] = []
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        lines = [line.rstrip() for line in part.splitlines() if line.strip()]
        while lines and (heading := _HEADING.fullmatch(lines[0])) is not None:
            level, words = heading.groups()
            if len(level) > 1:
                found.append(("h2" if len(level) == 2 else "h3", _plain(words)))
            lines = lines[1:]
        if not lines:
            continue
        if lines[0].startswith("    "):
            found.append(("code", textwrap.dedent("\n".join(lines))))
        elif lines[0].lstrip().startswith("|"):
            rows = [_cells(line) for line in lines if not _RULE.fullmatch(line.strip())]
            found += [("table", rows)] if rows else []
        elif _MARK.match(lines[0].lstrip()):
            found.append(("list", _items(lines)))
        else:
            found.append(("p", _unlinked(" ".join(line.strip() for line in lines))))
    return found


def title(text: str, otherwise: str) -> str:
    """Return the first heading of the first level."""
    return next((_plain(line[2:]) for line in text.splitlines() if line.startswith("# ")), otherwise)


def _items(lines: list[str]) -> list[str]:
    items: list[str] = []
    for line in lines:
        bare = line.strip()
        mark = _MARK.match(bare)
        if mark is not None:
            items.append(bare[mark.end() :])
        else:
            items[-1] += " " + bare
    return [_unlinked(item) for item in items]


def _cells(line: str) -> list[str]:
    return [_unlinked(cell.strip()) for cell in line.strip().strip("|").split("|")]


def _unlinked(text: str) -> str:
    return _LINK.sub(r"\1", text).replace("**", "")


def _plain(text: str) -> str:
    return _unlinked(text).replace("`", "")
