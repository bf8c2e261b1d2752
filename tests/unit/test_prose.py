"""Our own generated Markdown as blocks of a page."""

from muster_controller.web.prose import blocks, title

TEXT = """# Review of 2026-W47

Nothing **broke**, see [the runbook](docs/runbooks/x.md).

## Cost

| model | CPU-hours |
|---|---|
| digits | 1.5 |

```console
$ muster metrics digits

second line
```

1. one
  and more of it
2. two
"""


def test_headings_paragraphs_tables_and_lists_come_in_order() -> None:
    found = blocks(TEXT)

    assert found == [
        ("p", "Nothing broke, see the runbook."),
        ("h2", "Cost"),
        ("table", [["model", "CPU-hours"], ["digits", "1.5"]]),
        ("code", "$ muster metrics digits\n\nsecond line"),
        ("list", ["one and more of it", "two"]),
    ]


def test_the_title_is_the_first_heading() -> None:
    assert title(TEXT, "?") == "Review of 2026-W47"
    assert title("no heading", "Review") == "Review"


def test_a_publishers_card_may_hold_anything_and_is_never_markup_of_ours() -> None:
    card = "#no heading\n\n#\n\n####### seven\n\n|---|---|\n\n```c++ title\n<b>x</b>\n```\n\n<script>alert(1)</script>"

    found = blocks(card)

    assert found == [
        ("p", "#no heading"),
        ("p", "#"),
        ("p", "####### seven"),
        ("code", "<b>x</b>"),
        ("p", "<script>alert(1)</script>"),
    ]


def test_what_is_to_be_typed_keeps_its_marks_for_the_template() -> None:
    found = blocks("Then `muster alert list`.\n\n- **First**: `muster top`\n\n## Of `digits`")

    assert found == [("p", "Then `muster alert list`."), ("list", ["First: `muster top`"]), ("h2", "Of digits")]
