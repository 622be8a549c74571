"""Where a result came from: the code that it rests on, found from the imports."""

import importlib.util
import pkgutil
import subprocess
import sys

import pytest

import minilora
from minilora.lab import provenance


def write(folder, **files):
    for name, text in files.items():
        path = folder / "minilora" / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a few files in the place of the real one."""
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "minilora")
    for cached in (provenance.sources, provenance.imported):
        cached.cache_clear()
    (tmp_path / "minilora").mkdir()
    (tmp_path / "minilora/__init__.py").write_text("from minilora.core import f as g\n")
    yield tmp_path
    for cached in (provenance.sources, provenance.imported):
        cached.cache_clear()


def test_sources_follow_every_form_of_import(package):
    write(
        package,
        core="from minilora.base import x\n",
        base="import math\n",
        lab__data="def load():\n    from minilora.late import y\n",
        late="",
        other="",
        top="from minilora import g\nfrom minilora.lab import data\n",
        whole="import minilora\n",
    )
    (package / "minilora/lab/__init__.py").write_text("")
    found = provenance.sources("minilora.top")
    assert found == (
        "minilora.base",
        "minilora.core",
        "minilora.lab.data",
        "minilora.late",
        "minilora.top",
    )
    assert provenance.sources("minilora.whole") == (
        "minilora",
        "minilora.base",
        "minilora.core",
        "minilora.whole",
    )


def test_a_witness_is_no_source(package):
    write(package, lab__provenance="import minilora.core\n", core="", base="")
    write(package, top="from minilora.lab.provenance import now\nfrom minilora import base\n")
    assert provenance.sources("minilora.top") == ("minilora.base", "minilora.top")


def test_the_hash_sees_code_and_not_words(package):
    hashes = []
    for text in (
        'def f(x):\n    """Old words."""\n    return x + 1\n',
        'def f(x):\n    """New\n\n    words."""\n    # a comment\n\n    return x + 1\n',
        'def f(x):\n    """Old words."""\n    return x + 2\n',
    ):
        write(package, a=text)
        hashes.append(provenance.source_hash(["minilora.a"]))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("experiment", ["rank", "rates", "placement", "memory"])
def test_nothing_that_an_experiment_loads_is_missed(experiment):
    """What Python really imports, but for packages without code and what only notes down."""
    code = (
        f"import sys; import minilora.experiments.{experiment}; "
        "print(*sorted(n for n in sys.modules if n.split('.')[0] == 'minilora'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    # A package's __init__ is executed, and so is all that `import minilora` loads, used or not.
    packages = {m.name for m in pkgutil.walk_packages(minilora.__path__, "minilora.") if m.ispkg}
    used = set(provenance.sources(f"minilora.experiments.{experiment}"))
    beside = {"minilora", *provenance.WITNESSES, *packages}
    beside |= set(provenance.sources("minilora"))
    assert loaded - used - beside == set()
    assert {f"minilora.{name}" for name in ("layers", "state", "lab.work", "lab.sweep")} <= used
    assert all(importlib.util.find_spec(name) for name in used)
