"""Two kinds of text that every Python carries: the standard library's code, and prose about Python.

The code is that of the modules of the standard library, without comments and docstrings. The prose
is `pydoc_data.topics`, the help texts behind ``help("for")``, without their examples. Both are cut
into documents, by module and by topic, and whole documents are held out. What occurs in more than
one document, as much of these texts does, is kept in one of them only, since otherwise a model
could have learnt by heart in training what it is asked for afterwards; `shared_windows` measures
how much of that is left.

`minilora.lab.language` ships what was harvested once, so that no number of the book depends on the
Python that runs it.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

#: {name of a document: its text}
Documents = dict[str, str]

#: Folders of the standard library that are left out: tests, tables, copies of other projects, and
#: what belongs to one machine.
LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "encodings"}
LEFT_OUT |= {"pydoc_data", "ensurepip", "turtledemo", "distutils", "lib-dynload", "__pycache__"}

SPLITS = ("train", "validation", "test")

#: Typographic signs, as the help texts have them, and what a keyboard has.
SIGNS = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "…": "..."})

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def library_code() -> Documents:
    """The code of this Python's standard library, a document for each module or package."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if LEFT_OUT.isdisjoint(parts) and not path.name.startswith("_sysconfigdata"):
            text = bare(path.read_text(encoding="utf-8"))
            if text.isascii():
                found.setdefault(parts[0].removesuffix(".py"), []).append(text)
    return {name: "\n\n".join(texts) for name, texts in found.items()}


def bare(code: str) -> str:
    """Python code without comments and docstrings, laid out as `ast.unparse` does."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, _Documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(ast.fix_missing_locations(tree))


def help_prose() -> Documents:
    """The help texts of this Python, a document for each topic, one line for each paragraph."""
    from pydoc_data.topics import topics

    return {
        name: "\n\n".join(filter(None, map(_prose, re.split(r"\n\s*\n", text.translate(SIGNS)))))
        for name, text in sorted(topics.items())
    }


def _prose(paragraph: str) -> str:
    """A paragraph on one line; nothing, where it is an example, a grammar, a table or a rule."""
    words = " ".join(paragraph.split())
    signs = sum(not (c.isalpha() or c.isspace()) for c in words)
    if re.search(r">>>|::=|\+--|\|", paragraph) or signs > 0.2 * len(words) or not words.isascii():
        return ""
    try:
        ast.parse(textwrap.dedent(paragraph).strip("\n"))
    except (SyntaxError, ValueError):
        return words
    return "" if re.search(r"[=(:]", words) else words


def without_repeats(documents: Mapping[str, str], cut: str) -> Documents:
    """The same documents, in which each part that ``cut`` separates occurs once in all.

    It stays in the first that has it. How it is spaced does not count.
    """
    seen: set[str] = set()
    found = {}
    for name, text in documents.items():
        parts = []
        for part in text.split(cut):
            key = " ".join(part.split())
            if key and key not in seen:
                seen.add(key)
                parts.append(part)
        if parts:
            found[name] = cut.join(parts)
    return found


def split(documents: Mapping[str, str], held_out: float) -> dict[str, Documents]:
    """Documents to learn from, to choose by and to test on, dealt out by a hash of their names.

    The last two get a share of about ``held_out`` of all letters each.
    """
    left = sorted(documents, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    share = held_out * sum(map(len, documents.values()))
    names: dict[str, list[str]] = {}
    for which in ("test", "validation"):
        names[which], taken = [], 0
        while left and taken < share:
            # One that is too long for what there is still room for goes on to the next.
            fits = [name for name in left if taken + len(documents[name]) < 1.2 * share]
            if not fits:
                break
            left.remove(fits[0])
            names[which].append(fits[0])
            taken += len(documents[fits[0]])
    names["train"] = left
    return {which: {name: documents[name] for name in sorted(names[which])} for which in SPLITS}


def windows(text: str, width: int = 60) -> Iterator[str]:
    """All stretches of so many characters, however they are spaced."""
    words = " ".join(text.split())
    for start in range(len(words) - width + 1):
        yield words[start : start + width]


def shared_windows(held_out: Iterable[str], train: Iterable[str], width: int = 60) -> float:
    """The share of the ``width``-character stretches of held-out texts that a training text has."""
    known = {hash(window) for text in train for window in windows(text, width)}
    asked = [hash(window) in known for text in held_out for window in windows(text, width)]
    return sum(asked) / max(1, len(asked))
