"""Two rows of letters at the top of the glossary: A to Z, and あ か さ … for the Japanese names.

A letter leads to the first entry that begins with it. A kana leads into the list of Japanese
names, whose rows are put into the order of their readings, one group for each kana. Python does
not know how a name is read, and the order needs its beginning only: READINGS has the first sound
of each Chinese character that a name begins with. A new one has to be added there; the build says
so.
"""

from __future__ import annotations

import unicodedata

from docutils import nodes
from sphinx import addnodes
from sphinx.util import logging

logger = logging.getLogger(__name__)
LIST = "glossary-ja"  # the section with the table of Japanese names

ROWS = {
    "あ": "あいうえおぁぃぅぇぉ", "か": "かきくけこ", "さ": "さしすせそ", "た": "たちつてとっ",
    "な": "なにぬねの", "は": "はひふへほ", "ま": "まみむめも", "や": "やゆよゃゅょ",
    "ら": "らりるれろ", "わ": "わゐゑをん",
}  # fmt: skip
# How the first character of a name is read in the names of this glossary.
READINGS = {
    "一": "いち", "並": "へい", "中": "ちゅう", "主": "しゅ", "乱": "らん", "事": "じ", "二": "に",
    "交": "こう", "位": "い", "低": "てい", "侵": "しん", "保": "ほ", "信": "しん", "倍": "ばい",
    "全": "ぜん", "共": "きょう", "内": "ない", "凍": "とう", "出": "しゅつ", "分": "ぶん",
    "利": "り", "勾": "こう", "半": "はん", "単": "たん", "厳": "げん", "因": "いん", "固": "こ",
    "埋": "う", "基": "き", "外": "がい", "大": "だい", "学": "がく", "安": "あん", "完": "かん",
    "実": "じつ", "対": "たい", "層": "そう", "差": "さ", "帯": "たい", "強": "きょう",
    "従": "じゅう", "微": "び", "忘": "ぼう", "打": "う", "推": "すい", "損": "そん",
    "最": "さい", "条": "じょう", "検": "けん", "標": "ひょう", "正": "せい", "残": "ざん",
    "比": "ひ", "注": "ちゅう", "活": "かっ", "浮": "ふ", "混": "こん", "特": "とく", "画": "が",
    "直": "ちょく", "破": "は", "確": "かく", "等": "とう", "統": "とう", "線": "せん",
    "置": "ち", "自": "じ", "融": "ゆう", "計": "けい", "訓": "くん", "評": "ひょう",
    "転": "てん", "連": "れん", "過": "か", "適": "てき", "重": "おも", "量": "りょう",
    "限": "かぎ", "階": "かい", "鞍": "あん", "高": "こう", "丸": "まる",
}  # fmt: skip


def reading(name: str) -> str | None:
    """The beginning of a name in hiragana, '' for Latin letters and digits; None if unknown."""
    first = name[0]
    if first.isascii() or unicodedata.name(first, "").startswith("GREEK"):
        return ""
    if first in READINGS:
        return READINGS[first] + name[1:]
    code = ord(first)
    if 0x30A1 <= code <= 0x30F6:  # katakana lie 96 above hiragana
        return chr(code - 0x60) + name[1:]
    return name if 0x3041 <= code <= 0x3096 else None


def row_of(name: str) -> str | None:
    """'あ', 'か' … for a name in Japanese, '' for one that begins with Latin letters."""
    sound = reading(name)
    if not sound:
        return sound
    bare = unicodedata.normalize("NFD", sound[0])[0]  # が -> か
    return next((row for row, sounds in ROWS.items() if bare in sounds), None)


def _jump(label: str, target: str | None, said: str) -> nodes.Node:
    if target is None:
        return nodes.inline("", label, classes=["no-entries"])
    return nodes.reference("", "", nodes.Text(label), internal=True, refid=target, reftitle=said)


def _row(links: list[nodes.Node], label: str) -> nodes.paragraph:
    row = nodes.paragraph("", classes=["glossary-letters"])
    row += nodes.raw("", f'<span class="visually-hidden">{label}</span> ', format="html")
    for link in links:
        row += [link, nodes.Text(" ")]
    return row


def _letters(glossary: nodes.Element) -> list[nodes.Node]:
    first: dict[str, str] = {}
    for item in glossary.findall(nodes.definition_list_item):
        term = item.next_node(nodes.term)
        letter = unicodedata.normalize("NFD", term.astext()[0])[0].upper()
        first.setdefault(letter, term["ids"][0])
    return [_jump(letter, first.get(letter), f"Entries that begin with {letter}")
            for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]  # fmt: skip


def _order(section: nodes.section) -> dict[str, str]:
    """Put the list of Japanese names into the order of readings; {kana: anchor of its group}."""
    body = section.next_node(nodes.tbody)
    if body is None:
        return {}
    groups: dict[str, list[tuple[str, nodes.row]]] = {}
    for row in list(body.children):
        name = row.children[0].astext().strip()
        kana = row_of(name)
        if kana is None:
            logger.warning("glossary: how is %s read? Add its first character to READINGS in "
                           "book/_ext/glossary_rows.py", name,
                           type="glossary", subtype="reading")  # fmt: skip
            kana = ""
        groups.setdefault(kana, []).append((reading(name) or name.lower(), row))
    body.children = []
    anchors = {}
    for kana in ["", *ROWS]:
        for number, (_, row) in enumerate(sorted(groups.get(kana, []), key=lambda pair: pair[0])):
            if number == 0 and kana:
                anchors[kana] = f"kana-{list(ROWS).index(kana) + 1}"
                row["ids"].append(anchors[kana])
            body += row
    return anchors


def _add(app, doctree: nodes.document, page: str) -> None:
    if app.builder.format != "html":
        return
    glossary = next(iter(doctree.findall(addnodes.glossary)), None)
    if glossary is None:
        return
    anchors = {}
    for section in doctree.findall(nodes.section):
        if LIST in section["ids"] or LIST in section["names"]:
            anchors = _order(section)
    rows = [_row(_letters(glossary), "English:")]
    if anchors:
        kana = [_jump(kana, anchors.get(kana), f"{kana}行の日本語名") for kana in ROWS]
        rows.append(_row(kana, "日本語："))
    place = nodes.container("", *rows, classes=["glossary-rows"])
    glossary.parent.insert(glossary.parent.index(glossary), place)


def setup(app):
    app.connect("doctree-resolved", _add, priority=600)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
