"""From valid inputs to nearly valid ones: documents are changed as documents, everything else as bytes.

Pure: randomness is an argument, so that hypothesis can draw and shrink it and the fuzzer can seed it.
"""

from collections.abc import Callable, Sequence
from random import Random

from fuzz.documents import Node, Pairs, Token, pack, packed, read, write

BYTE_WORDS = (
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"-1",
    b"1e999",
    b'"',
    b"{",
    b"[",
    b"\xe2\x80\xae",
)
NUMBERS = ("0", "-1", "-0", "1", "0.1", "1e3", "1.0", "1e308", "1e400", "-1e400", "1e-400", "NaN", "Infinity")
NUMBERS += tuple(
    str(sign * (1 << bits) + step)
    for bits in (8, 16, 31, 32, 53, 60, 63, 64)
    for sign, step in ((1, 0), (1, -1), (-1, 0))
)
HUGE = ("9" * 400, "9" * 5000, "0." + "3" * 5000, "1e" + "9" * 30)
TEXTS = ("", " ", "\0", "a", "A", ".", "..", "../../etc/passwd", "/", "\ud800", "\udfff\ud800", "💥", "é", "e\u0301")
TEXTS += ("\u202e", "\u2028", "١", "a" * 65, "a" * 300, "a" * 5000, "a/b", "+", "#", "$SYS", "0" * 64, "f" * 64, "true")
KINDS: tuple[Node, ...] = (None, True, False, [], Pairs([]), "", Token("0"), Token("0.5"), Token("1"))
DEPTHS = (3, 17, 200, 1100, 20_000)


def mutate(data: bytes, others: Sequence[bytes], words: Sequence[bytes], bytes_max: int, random: Random) -> bytes:
    """Return `data` with a few changes, `bytes_max` at most; `others` lend pieces of theirs."""
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        data = _once(data, others, words, random)[:bytes_max]
    return data


def _once(data: bytes, others: Sequence[bytes], words: Sequence[bytes], random: Random) -> bytes:
    head, null, tail = data.partition(b"\0")
    if head.lstrip()[:1] in (b"{", b"[") and random.random() < 0.8:
        if null and random.random() < 0.3:
            return head + null + _bytes(tail, others, words, random)
        try:
            changed = write(_changed(read(head.decode("utf-8")), _lent(others, random), random))
            return changed.encode("utf-8", "surrogatepass") + null + tail
        except (ValueError, RecursionError):
            pass  # Not a document any more, or too deep for one.
    return _bytes(data, others, words, random)


# -- documents ---------------------------------------------------------------------------------------------------------


def _lent(others: Sequence[bytes], random: Random) -> Node:
    try:
        return read(random.choice(others).partition(b"\0")[0].decode("utf-8"))
    except ValueError:
        return None


Put = Callable[[Node], None]


def _places(node: Node, put: Put) -> list[tuple[Node, Put]]:
    """Return every node and how to put another in its place, outermost first."""
    found: list[tuple[Node, Put]] = [(node, put)]
    for each, _ in found:  # It grows.
        if isinstance(each, list):
            found += [(item, _into_list(each, at)) for at, item in enumerate(each)]
        elif isinstance(each, Pairs):
            found += [(value, _into_pairs(each, at)) for at, (_, value) in enumerate(each.pairs)]
    return found


def _into_list(items: list[Node], at: int) -> Put:
    return lambda new: items.__setitem__(at, new)


def _into_pairs(held: Pairs, at: int) -> Put:
    return lambda new: held.pairs.__setitem__(at, (held.pairs[at][0], new))


def _changed(root: Node, lent: Node, random: Random) -> Node:
    top = [root]
    node, put = random.choice(_places(root, lambda new: top.__setitem__(0, new)))
    if isinstance(node, str) and random.random() < 0.6 and (inner := packed(node)) is not None:
        put(pack(_changed(inner[0], lent, random), inner[1]))
    elif isinstance(node, Pairs | list) and random.random() < 0.7:
        _rearrange(node, lent, random)
    else:
        put(_other(node, root, lent, random))
    return top[0]


def _rearrange(node: Pairs | list[Node], lent: Node, random: Random) -> None:
    """Change what is in an object or a list: drop, repeat, swap, add."""
    held: list[tuple[str, Node]] | list[Node] = node.pairs if isinstance(node, Pairs) else node
    what = random.randrange(5)
    if what == 0 or not held:
        piece = random.choice(_places(lent, lambda _: None))[0]
        if isinstance(node, Pairs):
            node.pairs.insert(random.randint(0, len(held)), (random.choice(("x", "v", "type", *TEXTS)), piece))
        else:
            node.insert(random.randint(0, len(held)), piece)
    elif what == 1:
        del held[random.randrange(len(held))]
    elif what == 2:
        held[:] = held * random.choice((2, 2, 2, 70))
    elif isinstance(node, Pairs):
        at, other = random.randrange(len(node.pairs)), random.randrange(len(node.pairs))
        (key, value), (other_key, _) = node.pairs[at], node.pairs[other]
        if what == 3:
            node.pairs[at] = (other_key, value)  # A key twice, when it is another's.
        else:
            node.pairs.append((key, _other(value, node, lent, random)))
    else:
        random.shuffle(node)


def _other(node: Node, root: Node, lent: Node, random: Random) -> Node:
    """Return something in place of `node`: near it, or of another kind."""
    match random.randrange(8):
        case 0:
            return random.choice(KINDS)
        case 1:
            return Token(random.choice(NUMBERS))
        case 2:
            return random.choice(TEXTS)
        case 3:
            whole = root if random.random() < 0.5 else lent
            return Token(write(random.choice(_places(whole, lambda _: None))[0]))  # A copy, or it could hold itself.
        case 4:
            depth = random.choice(DEPTHS)
            opened, closed = random.choice((("[", "]"), ('{"a":', "}")))
            return Token(opened * depth + ("0" if opened != "[" else "") + closed * depth)
        case 5:
            return Token(random.choice(HUGE))
        case _:
            if isinstance(node, str):
                raw = node.encode("utf-8", "surrogatepass")
                return _bytes(raw, (raw,), (b"a", b"0", b".", b"/"), random).decode("utf-8", "replace")
            if isinstance(node, Token):
                return Token(random.choice((f"-{node.text}", f"{node.text}0", f"{node.text}.5", f"{node.text}e9", "1")))
            return random.choice(KINDS)


# -- bytes -------------------------------------------------------------------------------------------------------------


def _bytes(data: bytes, others: Sequence[bytes], words: Sequence[bytes], random: Random) -> bytes:
    at = random.randint(0, len(data))
    end = min(len(data), at + random.choice((1, 1, 2, 4, 8, 64)))
    match random.randrange(9):
        case 0:
            return data[:at] + bytes((random.randrange(256),)) + data[at + 1 :]
        case 1:
            bit = 1 << random.randrange(8)
            return data[:at] + bytes(byte ^ bit for byte in data[at : at + 1]) + data[at + 1 :]
        case 2:
            return data[:at] + data[end:]
        case 3:
            return data[:at]
        case 4:
            return data[:at] + data[at:end] * random.choice((2, 3, 100)) + data[end:]
        case 5:
            other = random.choice(others) if others else b""
            start = random.randint(0, len(other))
            return data[:at] + other[start : start + random.choice((1, 4, 16, 256, 65536))] + data[end:]
        case 6:
            width = random.choice((1, 2, 4, 8))
            value = random.choice((0, 1, 0x7F, 0x80, (1 << (8 * width)) - 1, (1 << (8 * width - 1)), len(data)))
            number = (value & ((1 << (8 * width)) - 1)).to_bytes(width, random.choice(("little", "big")))
            return data[:at] + number + data[at + width :]
        case _:
            return data[:at] + random.choice(tuple(words) or BYTE_WORDS) + data[random.choice((at, end)) :]
