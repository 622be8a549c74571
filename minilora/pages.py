"""A report on an adapter as one page of HTML: the sentences, the table, and each layer's spectrum.

Plain text and inline SVG: the page needs no network, no script and no other file. What comes from
the adapter's file is escaped, since a name in it may be anything.
"""

from __future__ import annotations

import math
from html import escape

from minilora.diagnosis import Reading
from minilora.inspection import Report, table_rows

WIDTH, HEIGHT = 220, 64  # of a spectrum, in CSS pixels
FLOOR = 1e-4  # the smallest share of the largest singular value that is drawn

STYLE = """
:root { color-scheme: light dark; --line: #888; --ink: light-dark(#1c5d99, #7db8ee); }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 0.9rem; }
.wide { overflow-x: auto; }
th, td { padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
.broken { border-left: 4px solid #c0392b; }
.warning { border-left: 4px solid #d68910; }
.note { border-left: 4px solid var(--line); }
.finding { margin: 0.5rem 0; padding: 0.1rem 0.8rem; }
.spectra { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: 220px; }
figcaption { font-size: 0.75rem; overflow-wrap: anywhere; }
svg rect { fill: var(--ink); }
svg line { stroke: var(--line); }
"""


def page(report: Report) -> str:
    """The whole page."""
    title = escape(f"{report.place}: {report.kind}")
    facts = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>"
        for name, value in report.facts.items()
    )
    said = "".join(
        f'<p class="finding {f.level}"><strong>{f.level.capitalize()}.</strong> '
        f"{escape(f.text)}</p>"
        for f in report.findings
    )
    parts = [f"<h1>{title}</h1>", said, f"<h2>The whole</h2><table>{facts}</table>"]
    if report.layers:
        rows = table_rows(report.layers)
        head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows[1:]
        )
        pictures = "".join(_figure(reading) for reading in report.layers if reading.values)
        parts += [
            f'<h2>Layer by layer</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>",
            "<h2>Spectra</h2><p>Singular values of each layer's update, the largest on the left, "
            "on a logarithmic scale from a ten-thousandth of the largest; the dashed line stands "
            "where 99% of the sum of squares is reached.</p>"
            f'<div class="spectra">{pictures}</div>',
        ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _figure(reading: Reading) -> str:
    values = [value for value in reading.values if value > 0]
    name = escape(reading.path)
    if not values:
        return f"<figure><figcaption>{name}: zero</figcaption></figure>"
    step = WIDTH / len(reading.values)
    bars = []
    for number, value in enumerate(values):
        share = 1 - math.log(max(value / values[0], FLOOR)) / math.log(FLOOR)
        high = max(0.5, share * HEIGHT)
        bars.append(
            f'<rect x="{number * step:.2f}" y="{HEIGHT - high:.2f}" width="{step * 0.8:.2f}" '
            f'height="{high:.2f}"/>'
        )
    at = reading.r99 * step
    label = (
        f"{name}: {len(values)} singular values, the largest {values[0]:.3g}; "
        f"{reading.r99} hold 99 per cent of the sum of squares"
    )
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{label}">{"".join(bars)}'
        f'<line x1="{at:.2f}" x2="{at:.2f}" y1="0" y2="{HEIGHT}" stroke-dasharray="3 3"/></svg>'
        f"<figcaption>{name}<br>σ₁ = {values[0]:.3g}, 99% in {reading.r99} of {reading.r}"
        "</figcaption></figure>"
    )
