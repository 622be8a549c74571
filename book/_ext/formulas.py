"""A comma after a formula stays on the formula's line.

A browser may break a line between a drawn formula and what follows it, so that a page has lines
that begin with a full stop. Here a formula and the punctuation that touches it share one <span>,
which book.css keeps together.
"""

from __future__ import annotations

import re

BEFORE = r"(?:[(\[“‘]|&quot;)*"
AFTER = r"(?:[-–]?[.,;:!?)\]”’%]|&quot;)+|[-–](?=\w)"
FORMULA = re.compile(
    rf'(?P<before>{BEFORE})(?P<formula><span class="math notranslate nohighlight">[^<]*</span>)'
    rf"(?P<after>{AFTER})?"
)


def held(body: str) -> str:
    """The HTML with each formula held together with the punctuation that touches it."""

    def hold(found: re.Match[str]) -> str:
        if not (found["before"] or found["after"]):
            return found[0]
        return f'<span class="held">{found[0]}</span>'

    return FORMULA.sub(hold, body)


def _page(app, pagename, templatename, context, doctree) -> None:
    if "body" in context:
        context["body"] = held(context["body"])


def setup(app):
    app.connect("html-page-context", _page)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
