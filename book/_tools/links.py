"""Are the addresses that the book names still there?

    python book/_tools/links.py [--html build/_build/html] [--skip REGEX] [--summary FILE]

Collects every http(s) address from the sources, or with --html from the built pages, and asks for
each once, politely: one request at a time for a server, a pause between two, a second and a third
try after trouble. An address is dead when its server says so (404, 410) or when there is no such
server. A server that does not answer programs (403, 429 …), or is ill today, proves nothing: such
addresses are listed and no error. Exits with 1 where an address is dead. Needs no package.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote, urldefrag, urlsplit

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = re.compile(r"https?://[^\s<>\"'`\\{}|^\[\]$]+")
# Names that stand for a reader's own, and those that are reserved for examples (RFC 2606).
EXAMPLES = re.compile(
    r"https?://(localhost|127\.0\.0\.1|([\w.-]+\.)?example\.(org|com|net)|someone\.github\.io)\b"
    r"|/(owner|someone|OWNER)/"
)
GONE = {404, 410, 451}
AGENT = "Mozilla/5.0 (compatible; the link check of a free textbook; one request a week)"
TRIES, PAUSE, TIMEOUT = 3, 1.0, 20.0


@dataclass(frozen=True)
class Answer:
    """What asking for an address gave: 'there', 'dead', or 'unsure', and why."""

    state: str
    why: str


# --- Collecting ---------------------------------------------------------------------------------


def addresses_in(text: str) -> set[str]:
    """The addresses in running text, without the punctuation that follows them."""
    found = set()
    for address in ADDRESS.findall(text):
        address = urldefrag(address).url.rstrip(".,;:!?*")
        while address.endswith(")") and address.count(")") > address.count("("):
            address = address[:-1].rstrip(".,;:")
        if not EXAMPLES.search(address):
            found.add(address)
    return found


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value and value.startswith(("http://", "https://")):
                if not EXAMPLES.search(value):
                    self.found.add(urldefrag(value).url)


def of_pages(folder: Path) -> dict[str, list[str]]:
    """address -> built pages that lead there."""
    places = defaultdict(list)
    for path in sorted(folder.rglob("*.html")):
        parser = _Links()
        parser.feed(path.read_text(encoding="utf-8"))
        for address in parser.found:
            places[address].append(path.relative_to(folder).as_posix())
    return dict(places)


def of_bibliography(text: str) -> set[str]:
    """The addresses that a .bib file's entries lead to on the site."""
    found = addresses_in(text)
    for kind, value in re.findall(r"^\s*(doi|eprint)\s*=\s*[{\"]([^}\"]+)[}\"]", text, flags=re.M):
        place = "https://doi.org/" if kind == "doi" else "https://arxiv.org/abs/"
        found.add(place + value.strip())
    return found


def of_sources(root: Path) -> dict[str, list[str]]:
    """address -> files of the repository that name it: prose, bibliography and docstrings."""
    files = [root / name for name in ("README.md", "CITATION.cff", "CHANGELOG.md")]
    files += [*(root / "book").rglob("*.md"), *(root / "book").glob("*.bib")]
    files += [*(root / "notebooks").glob("*.ipynb"), *(root / "book").glob("*.ipynb")]
    files += (root / "minilora").rglob("*.py")
    places = defaultdict(list)
    for path in sorted(filter(Path.is_file, files)):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            prose = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
            found = addresses_in("\n".join(prose))
        else:
            found = of_bibliography(text) if path.suffix == ".bib" else addresses_in(text)
        for address in found:
            places[address].append(path.relative_to(root).as_posix())
    return dict(places)


# --- Asking -------------------------------------------------------------------------------------


def _once(address: str, timeout: float) -> Answer | None:
    """One request; None where another try may help."""
    plain = quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    asked = urllib.request.Request(plain, headers={"User-Agent": AGENT, "Accept": "*/*"})
    try:
        with urllib.request.urlopen(asked, timeout=timeout) as found:
            moved = found.url if found.url.rstrip("/") != plain.rstrip("/") else ""
            return Answer("there", f"leads to {moved}" if moved else "")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in GONE:
            return Answer("dead", f"{error.code} {error.reason}")
        if error.code in (429, 500, 502, 503, 504):
            return None
        return Answer("unsure", f"{error.code} {error.reason}")


def ask(
    address: str,
    tries: int = TRIES,
    timeout: float = TIMEOUT,
    rest: Callable[[float], None] = time.sleep,
) -> Answer:
    """What has become of an address. ``rest`` waits between the tries, each time longer."""
    why, state = "", "unsure"
    for number in range(tries):
        if number:
            rest(PAUSE * 4**number)
        try:
            answer = _once(address, timeout)
            if answer is not None:
                return answer
            why, state = "the server is busy or ill", "unsure"
        except urllib.error.URLError as error:
            no_server = isinstance(error.reason, socket.gaierror | ConnectionRefusedError)
            state = "dead" if no_server or isinstance(error.reason, ssl.SSLError) else "unsure"
            why = str(error.reason)
        except (TimeoutError, HTTPException, OSError, ValueError) as error:
            why, state = f"{type(error).__name__}: {error}", "unsure"
    return Answer(state, why)


def ask_all(
    addresses: Iterable[str],
    one: Callable[[str], Answer] = ask,
    rest: Callable[[float], None] = time.sleep,
    servers_at_once: int = 8,
) -> dict[str, Answer]:
    """Every address; those of one server one after the other, with a pause between them."""
    by_server = defaultdict(list)
    for address in sorted(addresses):
        by_server[urlsplit(address).netloc].append(address)

    def of_server(mine: list[str]) -> list[tuple[str, Answer]]:
        found = []
        for number, address in enumerate(mine):
            if number:
                rest(PAUSE)
            found.append((address, one(address)))
        return found

    with ThreadPoolExecutor(servers_at_once) as pool:
        return dict(pair for pairs in pool.map(of_server, by_server.values()) for pair in pairs)


def report(answers: Mapping[str, Answer], places: Mapping[str, list[str]]) -> str:
    """What was found, as Markdown: the dead first, then what could not be told."""
    kinds = {
        "dead": "Dead",
        "unsure": "Could not be told (the server refuses programs, or had trouble)",
    }
    lines = [f"{len(answers)} addresses asked for."]
    for state, title in kinds.items():
        rows = [(address, one) for address, one in sorted(answers.items()) if one.state == state]
        if rows:
            lines += ["", f"**{title}: {len(rows)}**", ""]
            lines += [f"- {a} ({one.why}), in {', '.join(places[a][:3])}" for a, one in rows]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--html", type=Path, default=None, help="built pages instead of sources")
    parser.add_argument("--skip", default=None, help="addresses in which this is found: not asked")
    parser.add_argument("--summary", type=Path, default=None, help="append the report to this file")
    options = parser.parse_args(arguments)
    places = of_pages(options.html) if options.html else of_sources(ROOT)
    if options.skip:
        places = {a: where for a, where in places.items() if not re.search(options.skip, a)}
    answers = ask_all(places)
    text = report(answers, places)
    print(text)
    if options.summary:
        with options.summary.open("a", encoding="utf-8") as file:
            file.write(f"## Outward links\n\n{text}\n")
    return int(any(one.state == "dead" for one in answers.values()))


if __name__ == "__main__":
    sys.exit(main())
