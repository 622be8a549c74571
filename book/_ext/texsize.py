"""About how large a formula will be once it is drawn, so that the page can keep its place free.

TeX is longer than the formula it describes. A page that shows it until MathJax has drawn the
formula breaks its lines anew at that moment, under the reader's eyes. These estimates, in em of
the surrounding text, are within a tenth of the drawn width for most formulas of the book; nothing
depends on them but how far the text moves.
"""

from __future__ import annotations

import re
from typing import NamedTuple

SCALE = 1.195  # MathJax draws its letters larger than the text's font, so that x is as high as x
SCRIPT = 0.707

TOKEN = re.compile(r"\\[a-zA-Z]+\*?|\\.|[{}^_&]|\s+|.", re.DOTALL)


def _table(widths: str) -> dict[str, float]:
    """'a529 b429' -> the widths of these characters, in em."""
    return {entry[0]: int(entry[1:]) / 1000 for entry in widths.split()}


# Computer Modern's letters, in thousandths of an em: in formulas, and upright in words.
ITALIC = _table(
    "a529 b429 c433 d520 e466 f490 g477 h576 i345 j412 k521 l298 m878 n600 o485 p503 q446 r451 "
    "s469 t361 u572 v485 w716 x572 y490 z465 A750 B759 C715 D828 E738 F643 G786 H831 I440 J555 "
    "K849 L681 M970 N803 O763 P642 Q791 R759 S613 T584 U683 V583 W944 X828 Y581 Z683"
)
LEANING = _table("P105 W101 V180 Y180 T100 F100 C048 M079 N079 U079 H060 K060 X023 E030 J070 f080")
UPRIGHT = _table(
    "a500 b556 c444 d556 e444 f306 g500 h556 i278 j306 k528 l278 m833 n556 o500 p556 q528 r392 "
    "s394 t389 u556 v528 w722 x528 y528 z444 A750 B708 C722 D764 E681 F653 G785 H750 I361 J514 "
    "K736 L625 M917 N750 O778 P681 Q778 R736 S556 T722 U750 V750 W1028 X750 Y750 Z611"
) | {" ": 0.25, "-": 0.333}
RELATIONS = set("=<>≤≥≈→←") | {
    r"\le", r"\ge", r"\leq", r"\geq", r"\ne", r"\neq", r"\approx", r"\in", r"\notin", r"\to",
    r"\leftarrow", r"\rightarrow", r"\sim", r"\ll", r"\gg", r"\propto", r"\equiv",
}  # fmt: skip
BINARY = set("+*−") | {r"\times", r"\cdot", r"\pm", r"\circ", r"\oplus", r"\otimes", r"\odot"}
SPACES = {r"\,": 0.167, r"\:": 0.222, r"\;": 0.278, r"\!": -0.167, r"\ ": 0.25, "~": 0.25,
          r"\quad": 1.0, r"\qquad": 2.0}  # fmt: skip
NAMES = {"log", "sin", "cos", "tan", "exp", "min", "max", "lim", "det", "dim", "ker", "arg", "ln"}
SILENT = {"left", "right", "bigl", "bigr", "Bigl", "Bigr", "big", "Big", "displaystyle", "limits",
          "textstyle", "middle", "biggl", "biggr"}  # fmt: skip
ALPHABETS = {"mathsf", "mathrm", "mathbf", "mathbb", "mathcal", "mathit", "operatorname", "text",
             "textbf", "textit", "boldsymbol", "texttt"}  # fmt: skip
ACCENTS = {"hat", "bar", "tilde", "vec", "dot", "overline", "widehat", "underline"}
SYMBOLS = {"Delta": 0.833, "Sigma": 0.722, "Gamma": 0.625, "Lambda": 0.694, "Phi": 0.722,
           "Omega": 0.722, "Theta": 0.778, "alpha": 0.64, "beta": 0.566, "gamma": 0.518,
           "delta": 0.444, "varepsilon": 0.466, "epsilon": 0.406, "eta": 0.497, "theta": 0.469,
           "lambda": 0.583, "mu": 0.603, "nu": 0.494, "pi": 0.57, "rho": 0.517, "sigma": 0.571,
           "tau": 0.437, "omega": 0.622, "partial": 0.531, "infty": 1.0, "dots": 1.339,
           "cdots": 1.339, "ldots": 1.339, "ell": 0.417, "nabla": 0.833, "prod": 1.11,
           "int": 0.6, "star": 0.5, "top": 0.778, "lVert": 0.5, "rVert": 0.5, "lceil": 0.444,
           "rceil": 0.444, "lfloor": 0.444, "rfloor": 0.444, "angle": 0.722}  # fmt: skip


class Box(NamedTuple):
    """Width, height above the line and depth below it."""

    width: float
    above: float
    below: float


LINE = Box(0.0, 0.75, 0.25)


def _beside(boxes: list[Box]) -> Box:
    return Box(
        sum(box.width for box in boxes),
        max((box.above for box in boxes), default=0.0),
        max((box.below for box in boxes), default=0.0),
    )


def _small(box: Box, by: float) -> Box:
    return Box(*(size * by for size in box))


class _Reader:
    """Reads TeX from left to right and measures it."""

    def __init__(self, tex: str, display: bool) -> None:
        self.tokens = TOKEN.findall(tex)
        self.at = 0
        self.display = display
        self.depth = 0  # of scripts: there, TeX leaves no room around + and =

    def _next(self) -> str:
        """The next token that is no space, or '' at the end."""
        while self.at < len(self.tokens):
            self.at += 1
            if not self.tokens[self.at - 1].isspace():
                return self.tokens[self.at - 1]
        return ""

    def _peek(self) -> str:
        before = self.at
        token = self._next()
        self.at = before
        return token

    def _words(self) -> str:
        """The characters of a group that is text, spaces and all."""
        if self._peek() != "{":
            return self._next()
        self._next()
        words, open_ = "", 1
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            self.at += 1
            open_ += (token == "{") - (token == "}")
            if not open_:
                break
            words += token
        return words

    def _argument(self) -> Box:
        token = self._next()
        return self.sequence("}") if token == "{" else self._atom(token)

    def sequence(self, end: str = "") -> Box:
        """Everything up to the token `end`."""
        boxes = [LINE]
        while (token := self._next()) and token != end:
            if token in "^_" and len(boxes) > 1:
                boxes[-1] = self._script(boxes[-1], token)
            else:
                boxes.append(self._atom(token))
        return _beside(boxes)

    def _script(self, base: Box, mark: str) -> Box:
        self.depth += 1
        raised = {mark: _small(self._argument(), SCRIPT)}
        if self._peek() in {"^", "_"} and self._peek() != mark:
            other = self._next()
            raised[other] = _small(self._argument(), SCRIPT)
        self.depth -= 1
        over, under = raised.get("^", Box(0, 0, 0)), raised.get("_", Box(0, 0, 0))
        tall = base.above > 1.0 and self.display  # a sum: its limits stand above and below
        wide = max(over.width, under.width)
        return Box(
            max(base.width, wide) if tall else base.width + wide + 0.05,
            base.above + over.above if tall and over.width else max(base.above, 0.36 + over.above),
            base.below + under.above if tall else max(base.below, 0.15 + under.below),
        )

    def _atom(self, token: str) -> Box:
        if token == "{":
            return self.sequence("}")
        name = token[1:].rstrip("*") if token.startswith("\\") else ""
        if token in SPACES:
            return Box(SPACES[token], 0, 0)
        if token in RELATIONS:
            width = 0.667 if token in {r"\in", r"\notin"} else 0.778
            return LINE._replace(width=width + (0 if self.depth else 0.556))
        if token in BINARY:
            width = 0.278 if token == r"\cdot" else 0.778
            return LINE._replace(width=width + self._around())
        if name in {"frac", "tfrac", "dfrac"}:
            return self._fraction(name)
        if name == "sqrt":
            inner = self._argument()
            return Box(inner.width + 0.85, inner.above + 0.2, inner.below)
        if name in ALPHABETS:
            words = self._words()
            if name == "mathbb":
                return LINE._replace(width=0.722 * len(words))
            room = 0.167 if name == "operatorname" and not self.depth and self._peek() != "(" else 0
            return LINE._replace(width=sum(UPRIGHT.get(c, 0.5) for c in words) + room)
        if name in ACCENTS:
            return self._argument()
        if name == "begin":
            return self._rows()
        if name in SILENT or token in {"&", ""}:
            return Box(0, 0, 0)
        if name in NAMES:
            room = 0.167 if not self.depth and self._peek() not in {"(", "", "_"} else 0
            return LINE._replace(width=sum(UPRIGHT[c] for c in name) + room)
        if name == "sum":
            return Box(1.6, 1.06, 0.6) if self.display else LINE._replace(width=1.5)
        if name:
            return LINE._replace(width=SYMBOLS.get(name, 0.55))
        return LINE._replace(width=self._character(token))

    def _around(self) -> float:
        """The room around + or −: none where it is a sign, as in '= −1', and none in scripts."""
        before = next((t for t in reversed(self.tokens[: self.at - 1]) if t.strip()), "(")
        sign = before in RELATIONS | set("([{,^_&") or before in {r"\;", r"\\"}
        return 0 if self.depth or sign else 0.444

    def _character(self, token: str) -> float:
        if token == "-":
            return 0.778 + self._around()
        if token in ",;":
            return 0.28 + (0 if self.depth else 0.167)
        if token in ".:|!'":
            return 0.28
        if token in "()[]":
            return 0.389 if token in "()" else 0.278
        lean = LEANING.get(token, 0) if self._peek() != "_" else 0  # what stands out at the top
        return ITALIC.get(token, 0.5) + lean

    def _fraction(self, name: str) -> Box:
        small = name == "tfrac" or not self.display
        self.depth += small
        over, under = self._argument(), self._argument()
        self.depth -= small
        if small:
            over, under = _small(over, SCRIPT), _small(under, SCRIPT)
        gap = 0.15 if small else 0.3
        return Box(
            max(over.width, under.width) + 0.44,
            0.25 + gap + over.above + over.below - 0.1,
            under.above + under.below - 0.15,
        )

    def _rows(self) -> Box:
        """The rows of a matrix or of equations under each other."""
        kind = self._words()
        rows: list[list[Box]] = [[LINE]]
        widths: list[float] = [0.0]
        columns = 0
        while (token := self._next()) and token != r"\end":
            if token == r"\\":
                if self._peek() == "[":
                    while self._next() not in {"]", ""}:
                        pass
                rows.append([LINE])
                widths.append(0.0)
            elif token in "^_" and len(rows[-1]) > 1:
                rows[-1][-1] = self._script(rows[-1][-1], token)
            else:
                columns += token == "&"
                rows[-1].append(self._atom(token))
        self._words()
        lines = [_beside(row) for row in rows if len(row) > 1] or [LINE]
        matrix = "matrix" in kind
        gap = 0.2 if matrix else 0.3
        height = sum(line.above + line.below + gap for line in lines) + (0.1 if matrix else -0.1)
        width = max(line.width for line in lines)
        if matrix:
            width += 1.0 * columns / len(lines) + 1.45
        box = Box(width, height / 2 + 0.25, height / 2 - 0.25)
        return _small(box, 0.65) if kind == "smallmatrix" else box


def _bare(tex: str) -> str:
    """TeX without the delimiters around it."""
    return re.sub(r"^\s*\\[\[(]|\\[\])]\s*$", "", tex)


def width(tex: str) -> float:
    """The width of an inline formula in em of the text around it."""
    return round(max(0.3, _Reader(_bare(tex), display=False).sequence().width * SCALE), 2)


def height(tex: str) -> float:
    """The height of a displayed formula in em of the text around it."""
    box = _Reader(_bare(tex), display=True).sequence()
    return round((box.above + box.below) * SCALE, 2)
