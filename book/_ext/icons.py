"""The icons that the pages show, and no others, in a font of a few kB.

The theme brings fonts of 156 kB and 118 kB for a dozen icons, which arrive after the text and then
push it aside. Once the pages are written, the icons that they and the theme's style name are cut
out of these fonts and written into _static/icons.css. An icon that is not in there (drawn by a
script, say) still comes from the theme's own font.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

STYLE = "styles/pydata-sphinx-theme.css"
FONTS = "vendor/fontawesome/webfonts"
FACES = {  # file -> (family, weight)
    "fa-solid-900.ttf": ("Font Awesome 6 Free", 900),
    "fa-regular-400.ttf": ("Font Awesome 6 Free", 400),
    "fa-brands-400.ttf": ("Font Awesome 6 Brands", 400),
}
STYLES = {"fa-solid", "fas", "fa-regular", "far", "fa-brands", "fab", "fa"}


def icon_names(page: str) -> set[str]:
    """The icons that a page's elements ask for: {'fa-bars', 'fa-sun'}."""
    found: set[str] = set()
    for classes in re.findall(r'class="([^"]*\bfa[a-z]?\b[^"]*)"', page):
        found |= {name for name in classes.split() if name.startswith("fa-")}
    return found - STYLES


def code_points(names: set[str], style: str) -> set[int]:
    """The characters that stand for these icons and for those that the style shows by itself."""
    own = re.findall(r'--pst-icon-[\w-]+:\s*"(?:\\([0-9a-f]+)|(.))"', style)
    wanted = {int(code, 16) if code else ord(character) for code, character in own}
    for selectors, code in re.findall(r'([^{}]*)\{content:"\\([0-9a-f]+)"\}', style):
        if names & set(re.findall(r"\.(fa-[\w-]+):", selectors)):
            wanted.add(int(code, 16))
    return wanted


def cut_out(font: Path, wanted: set[int]) -> tuple[bytes, list[int]]:
    """A font (WOFF) with those of the wanted characters that this one has, and which these are."""
    from fontTools import subset, ttLib

    options = subset.Options(flavor="woff", notdef_outline=False, hinting=False, layout_features=[])
    whole = ttLib.TTFont(font, recalcTimestamp=False)
    has = sorted(wanted & set(whole.getBestCmap()))
    if not has:
        return b"", []
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=has)
    cutter.subset(whole)
    whole.flavor = "woff"
    file = io.BytesIO()
    whole.save(file)
    return file.getvalue(), has


def font_face(family: str, weight: int, font: bytes, characters: list[int]) -> str:
    """The rule that lets the browser take these characters from this font."""
    ranges = ", ".join(f"U+{code:X}" for code in characters)
    data = base64.b64encode(font).decode()
    return (
        f'@font-face {{\n  font-family: "{family}";\n  font-style: normal;\n'
        f"  font-weight: {weight};\n  font-display: block;\n  unicode-range: {ranges};\n"
        f'  src: url("data:font/woff;base64,{data}") format("woff");\n}}\n'
    )


def _write(app, exception) -> None:
    if exception is not None or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    if not (static / STYLE).is_file():
        return
    names: set[str] = set()
    for path in Path(app.outdir).rglob("*.html"):
        names |= icon_names(path.read_text(encoding="utf-8"))
    wanted = code_points(names, (static / STYLE).read_text(encoding="utf-8"))
    rules = []
    for file, (family, weight) in FACES.items():
        font, characters = cut_out(static / FONTS / file, wanted)
        if characters:
            rules.append(font_face(family, weight, font, characters))
    (static / "icons.css").write_text("".join(rules), encoding="utf-8")


def setup(app):
    app.add_css_file("icons.css")
    app.connect("build-finished", _write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
