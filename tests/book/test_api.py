"""The pages of the API: every public name of a documented module, once."""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from html import unescape
from importlib import import_module
from pathlib import Path

import pytest
import signatures
from site_help import ROOT

from minilora.__main__ import _parser

FOLDER = ROOT / "book" / "api"
PAGES = sorted(FOLDER.glob("*.md"))
TEXT = {path.name: path.read_text(encoding="utf-8") for path in PAGES}
# What the library is made of and nobody calls: their names are documented where they are defined,
# and not on the site.
INNER = {
    f"minilora.{name}"
    for name in [
        *("__main__", "accounting", "adapt", "base", "bases", "bypass", "checks", "config"),
        *("encoders", "files", "fitting", "folder", "keys", "merging", "pages", "settings"),
        *("shards", "state", "targets", "experiments.__main__"),
    ]
}
# Modules of which a page documents some names only.
PARTS = {"minilora.inspection", "minilora.diagnosis", "minilora.checkpoints", "minilora.foreign"}


def directives() -> list[tuple[str, str, dict[str, str]]]:
    """(kind, name, options) of every autodoc directive on the pages."""
    found = []
    for text in TEXT.values():
        for match in re.finditer(r"^\.\. auto(\w+):: (\S+)\n((?: {3}:.*\n)*)", text, flags=re.M):
            options = dict(re.findall(r":([\w-]+):[ ]?(.*)", match[3]))
            found.append((match[1], match[2], options))
    return found


def public(module: str) -> set[str]:
    """The functions and classes that a module defines, has documented and does not hide."""
    loaded = import_module(module)
    return {
        name
        for name, thing in vars(loaded).items()
        if not name.startswith("_")
        and (inspect.isfunction(thing) or inspect.isclass(thing))
        and thing.__module__ == module
        and thing.__doc__
    }


def documented() -> Counter:
    """How often each 'module.name' is described."""
    count: Counter = Counter()
    for kind, name, options in directives():
        if kind != "module":
            count[name] += 1
        elif "members" in options:
            names = set(re.split(r",\s*", options["members"])) - {""} or public(name)
            names -= set(re.split(r",\s*", options.get("exclude-members", "")))
            count.update(f"{name}.{one}" for one in names)
    return count


def test_no_name_is_described_twice():
    assert [name for name, times in documented().items() if times > 1] == []


def test_what_the_package_offers_is_described():
    import minilora

    missing = [name for name in minilora.__all__ if f"minilora.{name}" not in documented()]
    assert missing == []


def test_every_public_name_of_a_documented_module_is_described():
    import minilora

    known = documented()
    modules = {
        name for kind, name, options in directives() if kind == "module" and "members" in options
    }
    modules |= {name.rsplit(".", 1)[0] for kind, name, _ in directives() if kind != "module"}
    offered = {f"minilora.{name}": getattr(minilora, name) for name in minilora.__all__}
    for module in modules - PARTS - {"minilora"}:
        loaded = import_module(module)
        for name in public(module):
            # A name that `import minilora` offers is described under that.
            elsewhere = offered.get(f"minilora.{name}") is getattr(loaded, name)
            assert f"{module}.{name}" in known or elsewhere, f"{module}.{name}"


def test_every_module_is_documented_or_named_as_inner():
    known = {name for kind, name, _ in directives() if kind == "module"} | INNER
    parts = ("", "variants", "lab", "experiments", "exercises")
    for part in parts:
        for path in (ROOT / "minilora" / part).glob("*.py"):
            if path.name == "__init__.py" or re.fullmatch(r"ch\d\d\.py", path.name):
                continue
            module = ".".join(["minilora", *([part] if part else []), path.stem])
            assert module in known, f"{module} stands on no page of book/api"


def test_the_overview_names_what_is_described():
    overview = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"\{py:(?:func|class)\}`([\w.]+)`", overview)
    assert len(named) > 40
    assert [name for name in named if name not in documented()] == []
    pages = set(re.findall(r"\{doc\}`api/(\w+)`", overview))
    assert pages == {path.stem for path in PAGES}


def test_the_page_of_the_command_has_its_commands_and_options():
    rows = {
        match[1]: match[0]
        for match in re.finditer(r"^\* - `minilora (\w+) .*`$", TEXT["folders.md"], flags=re.M)
    }
    commands = next(
        action.choices for action in _parser()._actions if isinstance(action.choices, dict)
    )
    assert set(rows) == set(commands)
    for name, command in commands.items():
        options = {
            word
            for action in command._actions
            for word in action.option_strings
            if word.startswith("--") and word != "--help"
        }
        assert set(re.findall(r"--[\w-]+", rows[name])) == options, name


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("(a: dict = <factory>, b=1)", "(a: dict = ..., b=1)"),
        ("(same=<function close at 0x7f0a>)", "(same=close)"),
        ("(same=<function Some.<locals>.close at 0x7f0a>)", "(same=...)"),
        ("(a: int) -> None", "(a: int) -> None"),
        (None, None),
    ],
)
def test_signatures_can_be_parsed(given, shown):
    assert signatures.readable(given) == shown
    if shown:
        ast.parse(f"def f{shown}: pass")


@pytest.mark.site
def test_the_site_describes_every_name_where_the_overview_says(site):
    links = re.findall(
        r'href="(api/\w+\.html)#([\w.]+)"', (site / "book" / "api.html").read_text("utf-8")
    )
    assert len(links) > 40
    for page, place in links:
        assert f'id="{place}"' in (site / "book" / page).read_text("utf-8"), f"{page}#{place}"
    described = Counter(
        name
        for path in Path(site, "book", "api").glob("*.html")
        for name in re.findall(r'<dt class="sig[^"]*" id="([\w.]+)"', path.read_text("utf-8"))
    )
    assert [name for name, times in described.items() if times > 1] == []
    assert set(documented()) <= set(described)
    for page in {page for page, _ in links}:
        # As it is read: on the page the signs are escaped, and each is an element of its own.
        words = unescape(re.sub(r"<[^>]+>", "", (site / "book" / page).read_text("utf-8")))
        assert "<factory>" not in words and "<function" not in words, page
