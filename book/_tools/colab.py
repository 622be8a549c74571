"""Write the chapters as plain-Markdown notebooks, for Colab.

    python book/_tools/colab.py OUT --repository owner/name --commit SHA [--site URL]

Colab shows MyST's roles and directives as raw text. So each chapter is written once more with its
exercise boxes as quotations, its references as the titles and numbers that the site shows, its
citations as names and years, its glued values as the numbers of the last build, its figures'
captions as text under the cell, its live models as a pointer to the published page, and the set-up
cell's SOURCE filled in, so that the notebook installs the package of exactly this commit. Needs a
built site: numbers and glued values come from there.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE_LINE = "SOURCE = None"


@dataclass
class Lookups:
    """What the site knows and the bare text does not."""

    titles: dict[str, str] = field(default_factory=dict)  # label -> title of section or exercise
    pages: dict[str, str] = field(default_factory=dict)  # label or page -> page on the site
    numbers: dict[str, str] = field(default_factory=dict)  # label of a figure or equation -> 1.2
    citations: dict[str, tuple[str, str]] = field(default_factory=dict)  # key -> (authors, year)
    links: dict[str, str] = field(default_factory=dict)  # key -> address of the cited work
    glued: dict[str, object] = field(default_factory=dict)  # name -> value, of this chapter
    site: str = ""  # address of the site; links are plain text without it

    def link(self, text: str, label: str) -> str:
        page = self.pages.get(label)
        return f"[{text}]({self.site}/{page})" if self.site and page else text


# --- Roles ------------------------------------------------------------------------------------

ROLE = re.compile(r"\{([a-zA-Z][\w:-]*)\}`([^`]+)`")


def _split(content: str) -> tuple[str | None, str]:
    """'text <target>' -> (text, target); 'target' -> (None, target)."""
    found = re.fullmatch(r"(.*?)\s*<([^<>]+)>", content, flags=re.S)
    return (found[1], found[2].strip()) if found else (None, content.strip())


def _cite(role: str, content: str, known: Lookups) -> str:
    parts = []
    for key in (part.strip() for part in content.split(",")):
        authors, year = known.citations.get(key, (key, ""))
        year = f"[{year}]({known.links[key]})" if key in known.links and year else year
        if role in ("cite:t", "cite:ts"):
            parts.append(f"{authors} ({year})" if year else authors)
        else:
            parts.append(f"{authors}, {year}" if year else authors)
    return " and ".join(parts) if role in ("cite:t", "cite:ts") else f"({'; '.join(parts)})"


def _glued(content: str, known: Lookups) -> str:
    name, _, form = content.partition(":")
    if name not in known.glued:
        raise KeyError(f"no cell glued a value named {name!r}")
    value = known.glued[name]
    return format(value, form) if form else str(value)


def _role(found: re.Match[str], known: Lookups) -> str:
    role, content = found[1], found[2]
    text, target = _split(content)
    if role == "term":
        return text or target
    if role in ("ref", "doc", "prf:ref"):
        shown = text or known.titles.get(target.lstrip("/"), target)
        return known.link(shown, target.lstrip("/"))
    if role == "numref":
        number = known.numbers.get(target, "?")
        shown = text.replace("%s", number).replace("{number}", number) if text else f"Fig. {number}"
        return shown
    if role in ("eq", "math:numref"):
        return f"({known.numbers.get(target, '?')})"
    if role.startswith("cite"):
        return _cite(role, content, known)
    if role in ("glue:text", "glue:"):
        return _glued(content, known)
    if role == "math":
        return f"${content}$"
    if role in ("sub", "sup"):
        return f"<{role}>{content}</{role}>"
    if role in ("abbr", "index", "kbd", "file", "download", "dfn"):
        return text or target
    if role.startswith("py:") or role in ("func", "class", "meth", "mod", "attr"):
        return f"`{text or target.lstrip('~!.')}`"
    raise ValueError(f"a role that Colab would show as raw text: {found[0]}")


# --- Directives -------------------------------------------------------------------------------

OPENING = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|:{3,})\{(?P<name>[\w:-]+)\}(?P<title>.*)$")


def _quote(title: str, body: str) -> str:
    lines = [f"**{title}**", "", *body.strip().splitlines()] if title else body.strip().splitlines()
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _options(lines: list[str]) -> tuple[dict[str, str], list[str]]:
    """The ':key: value' lines on top of a directive, or its YAML block, and the rest."""
    given: dict[str, str] = {}
    lines = list(lines)
    if lines and lines[0].strip() == "---":
        end = lines.index("---", 1)
        for line in lines[1:end]:
            key, _, value = line.partition(":")
            given[key.strip()] = value.strip()
        return given, lines[end + 1 :]
    while lines and (found := re.fullmatch(r":([\w-]+):\s*(.*)", lines[0].strip())):
        given[found[1]] = found[2]
        lines.pop(0)
    return given, lines


def _directive(name: str, title: str, lines: list[str], known: Lookups) -> str:
    options, rest = _options(lines)
    body = plain("\n".join(rest), known)
    title = title.strip()
    if name in ("exercise", "exercise-start"):
        number = known.numbers.get(options.get("label", ""), "")
        return _quote(f"Exercise {number} {title}".replace("  ", " ").strip(), body)
    if name in ("solution", "solution-start"):
        return _quote("Solution", body)
    if name in ("admonition", "card", "dropdown", "grid-item-card", "tab-item", "topic", "sidebar"):
        return _quote(title, body)
    if name in ("note", "tip", "important", "warning", "hint", "caution", "seealso", "attention"):
        return _quote(name.capitalize(), f"{title}\n{body}".strip())
    if name == "math":
        return _equation("\n".join(rest), options.get("label"), known)
    if name in ("figure", "image"):
        return f"![{options.get('alt', '')}]({title})" + (
            f"\n\n*{body.strip()}*" if body.strip() else ""
        )
    if name == "live":
        shown = known.link("In the published page", options.get("name", ""))
        return _quote("", f"{shown} this place holds a model that you can try. {body}")
    if name == "code-block":
        return f"```{title}\n" + "\n".join(rest) + "\n```"
    if name in ("bibliography", "tableofcontents", "raw", "exercise-end", "solution-end", "index"):
        return ""
    return body


def _equation(tex: str, label: str | None, known: Lookups) -> str:
    tag = f" \\tag{{{known.numbers[label]}}}" if label and label in known.numbers else ""
    return f"$$\n{tex.strip()}{tag}\n$$"


def _inline(text: str, known: Lookups) -> str:
    """Everything but directives: labels, labelled equations, roles."""
    text = re.sub(r"^\([\w:.-]+\)=\s*\n", "", text, flags=re.M)
    text = re.sub(
        r"^\$\$(.+?)\$\$[ \t]*\(([\w:.-]+)\)[ \t]*$",
        lambda found: _equation(found[1], found[2], known),
        text,
        flags=re.M | re.S,
    )
    return ROLE.sub(lambda found: _role(found, known), text)


def plain(text: str, known: Lookups) -> str:
    """MyST Markdown -> Markdown that any notebook program shows."""
    lines, out, waiting = text.split("\n"), [], []
    index = 0
    while index < len(lines):
        opening = OPENING.match(lines[index])
        code = re.match(r"^ *(`{3,})(?!\{)", lines[index])
        if not opening and not code:
            waiting.append(lines[index])
            index += 1
            continue
        out.append(_inline("\n".join(waiting), known))
        waiting = []
        fence = opening["fence"] if opening else code[1]
        end = index + 1
        while end < len(lines) and not re.fullmatch(
            rf" *{re.escape(fence[0])}{{{len(fence)},}} *", lines[end]
        ):
            end += 1
        body = lines[index + 1 : end]
        if opening:
            out.append(_directive(opening["name"], opening["title"], body, known))
        else:
            out.append("\n".join(lines[index : end + 1]))  # a code block stays as it is
        index = end + 1
    out.append(_inline("\n".join(waiting), known))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip("\n")


# --- Notebooks --------------------------------------------------------------------------------


def convert(notebook: dict, known: Lookups, source: str | None) -> dict:
    """The plain-Markdown notebook; `source` is what the set-up cell shall install."""
    cells = []
    for cell in notebook["cells"]:
        cell = copy.deepcopy(cell)
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text = plain(text, known)
            if not text.strip():
                continue
        elif source and SOURCE_LINE in text:
            text = re.sub(r"SOURCE = None.*", lambda _: f"SOURCE = {json.dumps(source)}", text)
        cell["source"] = text.splitlines(keepends=True)
        if cell["cell_type"] == "code" and cell["metadata"].get("cellView") == "form":
            cell["source"] = ["# @title Solution\n", *cell["source"]]
        cells.append(cell)
        figure = cell["metadata"].get("mystnb", {}).get("figure", {})
        if figure.get("caption"):
            number = known.numbers.get(figure.get("name", ""), "")
            caption = plain(figure["caption"], known)
            cells.append(
                {
                    "cell_type": "markdown",
                    "id": f"{cell['id']}-caption"[:64],
                    "metadata": {},
                    "source": [f"**Fig. {number}**  ".replace("  **", "**") + caption],
                }
            )
    return {**notebook, "cells": cells}


def glued_values(outputs: dict[str, dict]) -> dict[str, object]:
    """Glued outputs, as MyST-NB stores them beside an executed notebook -> numbers or texts."""
    values: dict[str, object] = {}
    for name, output in outputs.items():
        shown = output.get("data", {}).get("text/plain")
        if shown is None:
            continue
        number = re.fullmatch(r"(?:np\.\w+|tensor)\((.*)\)", shown)
        try:
            values[name] = ast.literal_eval(number[1] if number else shown)
        except (ValueError, SyntaxError):
            values[name] = shown
    return values


def citations() -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """key -> (authors, year), and key -> address, from references.bib."""
    from pybtex.database import parse_file

    names, links = {}, {}
    for key, entry in parse_file(str(ROOT / "book" / "references.bib")).entries.items():
        people = [" ".join(p.prelast_names + p.last_names) for p in entry.persons["author"]]
        people = [re.sub(r"[{}]|\\[\"'L]", "", name) for name in people]
        short = people[0] if len(people) == 1 else f"{people[0]} et al."
        if len(people) == 2:
            short = " and ".join(people)
        names[key] = (short, entry.fields.get("year", ""))
        if "eprint" in entry.fields:
            links[key] = f"https://arxiv.org/abs/{entry.fields['eprint']}"
        elif "doi" in entry.fields:
            links[key] = f"https://doi.org/{entry.fields['doi']}"
        elif "url" in entry.fields:
            links[key] = entry.fields["url"]
    return names, links


def lookups_of_site(build: Path, site: str) -> Lookups:
    """Titles and numbers as Sphinx gave them, from the environment that the build left."""
    with open(build / "_build" / ".doctrees" / "environment.pickle", "rb") as file:
        return lookups_of(pickle.load(file), site)


def lookups_of(env, site: str) -> Lookups:
    """The same from an environment in memory."""
    known = Lookups(site=site.rstrip("/"))
    known.citations, known.links = citations()
    labels = env.domaindata["std"]["labels"] | env.domaindata["std"]["anonlabels"]
    for label, entry in labels.items():
        page, place = entry[0], entry[1]
        if len(entry) > 2 and entry[2]:
            known.titles[label] = str(entry[2])
        known.pages[label] = f"{page}.html" + (f"#{place}" if place else "")
        for kind in env.toc_fignumbers.get(page, {}).values():
            if place in kind:
                known.numbers[label] = ".".join(map(str, kind[place]))
    for page, title in env.titles.items():
        known.titles[page] = title.astext()
        known.pages[page] = f"{page}.html"
    for label, (page, number) in env.domaindata["math"]["objects"].items():
        place = f"equation-{label}"
        shown = env.toc_fignumbers.get(page, {}).get("displaymath", {}).get(place)
        known.numbers[label] = ".".join(map(str, shown)) if shown else str(number)
    return known


def write_plain(
    build: Path,
    folder: Path,
    known: Lookups,
    source: str | None,
    change: Callable[[dict], dict] = lambda notebook: notebook,
    where: str = "notebooks",
) -> int:
    """Write every notebook of ``where`` into ``folder``; how many. ``change`` gets it first.

    Raises:
        ValueError: A chapter refers to what the last build does not know; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = sorted((ROOT / where).glob("*.ipynb"))
    for path in paths:
        glued = build / "_build" / "jupyter_execute" / where / f"{path.stem}.glue.json"
        stored = json.loads(glued.read_text(encoding="utf-8")) if glued.exists() else {}
        known.glued = glued_values(stored)
        notebook = change(json.loads(path.read_text(encoding="utf-8")))
        try:
            notebook = convert(notebook, known, source)
        except (KeyError, ValueError) as problem:
            raise ValueError(f"{path.name}: {problem}") from None
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        (folder / path.name).write_text(text, encoding="utf-8")
    return len(paths)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--repository", required=True, help="owner/name on GitHub")
    parser.add_argument("--commit", required=True)
    parser.add_argument("--site", default="", help="address of the published book")
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    options = parser.parse_args()

    known = lookups_of_site(options.build, options.site)
    source = f"git+https://github.com/{options.repository}@{options.commit}"
    written = 0
    try:
        for where in ("notebooks", "book"):  # the paths that the site's buttons open
            folder = options.out / where
            written += write_plain(options.build, folder, known, source, where=where)
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return 1
    (options.out / "README.md").write_text(
        f"The chapters of https://github.com/{options.repository} for Colab, written by "
        f"book/_tools/colab.py from commit {options.commit}. Do not edit: the next deployment "
        "replaces them.\n",
        encoding="utf-8",
    )
    print(f"{written} notebooks in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
