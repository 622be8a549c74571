"""The house and its laws, held over every module: see .github/CONTRIBUTING.md.

Imports are read off the source, those inside functions and under TYPE_CHECKING as well, so that
none can hide a circle.
"""

import ast
import graphlib
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from minilora.lab.provenance import code_lines, imported, path_of

PACKAGE = Path(__file__).resolve().parents[1] / "minilora"
WINGS = {"variants", "lab", "experiments", "exercises"}
# The library, each file before those that may import it. The first eighteen are what
# `import minilora` loads.
LIBRARY = [
    *(
        "config",
        "bypass",
        "layers",
        "initializers",
        "dora",
        "fitting",
        "targets",
        "base",
        "state",
        "checks",
    ),
    *("encoders", "merging", "adapt", "folder", "settings", "keys", "files", "accounting"),
    *("svd", "quantize", "serving"),
    *("shards", "stored", "bases", "foreign", "surgery", "checkpoints"),
    *("diagnosis", "inspection", "pages"),
]
CORE, LOADED = ["config", "layers", "adapt", "files"], LIBRARY[:18]
# Which rooms a room may import from, beside itself.
MAY_IMPORT = {
    "library": set(),
    "variants": {"library"},
    "lab": {"library", "variants"},
    "experiments": {"library", "variants", "lab"},
    "exercises": {"library", "variants", "lab"},
}


def modules() -> list[str]:
    """All modules of the package, by their dotted names."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


MODULES = modules()
every = pytest.mark.parametrize("module", MODULES)


def room(module: str) -> str:
    """The wing that a module belongs to, or "library"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in WINGS else "library"


def experiment(module: str) -> str | None:
    """The experiment that a module belongs to, if it is of one and not of what they share."""
    parts = module.split(".")
    if parts[1:2] != ["experiments"] or len(parts) < 3:
        return None
    return parts[2] if (PACKAGE / "experiments" / parts[2]).is_dir() else None


def tree(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def test_counting_code_lines(tmp_path):
    text = (
        '"""Doc."""\n# comment\n\nx = 1  # why\n\n\ndef f():\n    """Doc.\n\n    More.\n    """\n'
    )
    (tmp_path / "m.py").write_text(text + "    return (\n        x\n    )\n")
    assert len(code_lines(tmp_path / "m.py")) == 5


# ---------------------------------------------------------------- 1. files and folders


def test_a_file_is_the_library_and_a_folder_is_a_wing():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}  # the command
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert files == set(LIBRARY)
    assert folders == WINGS
    for wing in WINGS - {"experiments"}:  # a wing has no wings of its own
        inside = [path for path in (PACKAGE / wing).iterdir() if path.is_dir()]
        assert {path.name for path in inside} <= {"__pycache__", "shipped"}  # data, no code


# ---------------------------------------------------------------- 2. core and variants


def test_what_import_minilora_loads_is_the_core_and_what_it_stands_on():
    code = "import sys, minilora; print(*(n for n in sys.modules if n.startswith('minilora.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {f"minilora.{name}" for name in LOADED}


def test_the_core_can_be_read_in_a_sitting():
    sizes = {name: len(code_lines(PACKAGE / f"{name}.py")) for name in LIBRARY}
    assert sum(sizes[name] for name in CORE) <= 900
    assert sum(sizes[name] for name in LOADED) < 2500
    assert max(sizes.values()) < 330


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_s_arrows_go_one_way(name):
    earlier = {f"minilora.{other}" for other in LIBRARY[: LIBRARY.index(name)]}
    assert imported(f"minilora.{name}") <= earlier


# ---------------------------------------------------------------- 3. experiments


@every
def test_no_experiment_imports_another(module):
    mine = experiment(module)
    others = {experiment(other) for other in imported(module)} - {None, mine}
    if module != "minilora.experiments.__main__":  # which runs them all, by name
        assert not others


def test_an_experiment_is_a_folder_and_all_are_named():
    from minilora.experiments import NAMES

    folders = {path.parent.name for path in (PACKAGE / "experiments").glob("*/experiment.py")}
    assert folders == set(NAMES)
    assert {experiment(module) for module in MODULES} - {None} == folders


def test_no_file_of_the_experiments_is_long():
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in (PACKAGE / "experiments").rglob("*.py")
    }
    assert max(lengths.values()) <= 350


# ---------------------------------------------------------------- 4. arrows


@every
def test_a_room_imports_only_from_rooms_below_it(module):
    above = {other for other in imported(module) if room(other) != room(module)}
    assert {room(other) for other in above} <= MAY_IMPORT[room(module)]


def test_no_circle():
    graph = {module: imported(module) - {module} for module in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) == set(MODULES)


@every
def test_no_import_of_the_package_hides_in_a_function(module):
    """Nor under TYPE_CHECKING: each is at the top, where it can be seen."""
    hidden = []
    body = tree(module)
    top = {id(node) for node in body.body}
    for node in ast.walk(body):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in top:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            hidden += [name for name in names if (name or "").split(".")[0] == "minilora"]
    assert not hidden


# ---------------------------------------------------------------- one word, one meaning


def test_a_class_has_a_name_of_its_own():
    homes = defaultdict(list)
    for module in MODULES:
        for node in tree(module).body:
            if isinstance(node, ast.ClassDef):
                homes[node.name.lstrip("_")].append(module)
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_a_file_is_written_aside_and_renamed_in_two_places():
    renaming = {
        module
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and node.attr in ("replace", "rename")
        if isinstance(node.value, ast.Name) and node.value.id == "os"
    }
    # What is smaller than memory, and what is not.
    assert renaming == {"minilora.folder", "minilora.shards"}


STATE = """
import json, os, random, sys, warnings
import numpy as np, torch, matplotlib
def state():
    tiny = torch.tensor(torch.finfo(torch.float32).tiny)
    return [
        torch.get_num_threads(), torch.get_default_dtype().__repr__(), (tiny / 2).item() == 0,
        torch.initial_seed(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
        repr(np.get_printoptions()), hash(random.getstate()), repr(np.random.get_state()),
        repr(warnings.filters), sorted(os.environ), repr(dict(matplotlib.rcParams)),
        matplotlib.get_backend(), sys.getrecursionlimit(), sys.path,
    ]
before = state()
"""


def test_an_import_changes_nothing_in_the_process():
    """What was asked of torch, NumPy, matplotlib and Python before holds after."""
    imports = "\n".join(f"import {name}" for name in MODULES if not name.endswith("__main__"))
    # Packages of others have filters of their own, which come with their import.
    others = "import joblib, scipy.stats, safetensors.torch, matplotlib.pyplot, PIL.Image, sympy\n"
    code = others + STATE + imports + "\nprint(json.dumps([before, state()], default=repr))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert before == after
