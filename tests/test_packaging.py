"""What the files around the code say of each other: versions, extras, commands, the README."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
# What conda-forge calls what PyPI calls otherwise.
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict:
    return tomllib.loads(read("pyproject.toml"))["project"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(*extras: str) -> dict[str, SpecifierSet]:
    """name -> versions, of the core (no extra named) or of these extras."""
    listed = project()["dependencies"] if not extras else []
    for extra in extras:
        listed = [*listed, *project()["optional-dependencies"][extra]]
    found: dict[str, SpecifierSet] = {}
    for requirement in map(Requirement, listed):
        if requirement.name == "minilora":
            found |= requirements(*requirement.extras)
        else:
            found[canonical(requirement.name)] = requirement.specifier
    return found


def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in read("constraints.txt").splitlines()]
    return {canonical(name): version for name, version in (ln.split("==") for ln in lines if ln)}


def conda() -> tuple[dict[str, SpecifierSet], list[str]]:
    """The conda packages with their versions, and the lines left to pip."""
    found, pip = {}, []
    for entry in yaml.safe_load(read("environment.yml"))["dependencies"]:
        if isinstance(entry, dict):
            pip = entry["pip"]
        else:
            name, _, versions = entry.partition(" ")
            found[CONDA_NAMES.get(name, name)] = SpecifierSet(versions)
    return found, pip


# --- environment.yml ----------------------------------------------------------------------------


def test_environment_has_the_packages_and_versions_of_pyproject():
    packages, _ = conda()
    wanted = requirements() | requirements("experiments") | requirements("book")
    assert set(packages) - {"python", "pip"} == set(wanted)
    for name, versions in wanted.items():
        assert packages[name] == versions, name
    assert packages["python"] == SpecifierSet(project()["requires-python"])


def test_environment_leaves_the_rest_to_pip():
    _, pip = conda()
    (line,) = pip
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", line)
    assert extras, line
    assert set(extras[1].split(",")) == {"book", "test", "interop"}
    assert yaml.safe_load(read("environment.yml"))["channels"][0] == "conda-forge"


# --- constraints.txt ----------------------------------------------------------------------------


def test_every_requirement_is_pinned_and_the_pin_fits():
    pinned = pins()
    for name, versions in (
        requirements() | requirements("book", "test", "interop", "lab", "experiments")
    ).items():
        assert name in pinned, f"{name} has no pin in constraints.txt"
        assert versions.contains(pinned[name]), f"{name} {pinned[name]} does not fit {versions}"


def test_pins_are_exact_and_never_local_builds():
    for name, version in pins().items():
        assert Version(version).local is None, f"{name}=={version} is on one index only"
    assert "+cpu" not in "".join(pins().values())


def test_what_is_installed_is_what_is_pinned():
    """Only where `make` installed it: an environment of conda's has versions of its own."""
    if not (Path(sys.prefix) / "installed").exists():
        pytest.skip("not the .venv that make has made")
    wrong = {}
    for name, version in pins().items():
        try:
            installed = Version(metadata.version(name)).public
        except metadata.PackageNotFoundError:
            continue  # pinned for another system, or for `make lab`
        if installed != version:
            wrong[name] = (installed, version)
    assert wrong == {}


# --- the package --------------------------------------------------------------------------------


def test_versions_agree():
    import minilora

    cited = re.search(r"^version: (\S+)$", read("CITATION.cff"), re.M)
    assert minilora.__version__ == project()["version"] == cited[1]


def test_package_is_typed_and_carries_its_recordings():
    assert (ROOT / "minilora" / "py.typed").exists()
    wheel = tomllib.loads(read("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["minilora"]
    for path in (ROOT / "minilora" / "experiments" / "recorded").glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


def test_import_needs_neither_matplotlib_nor_scikit_learn():
    """Nor Jupyter, nor other people's LoRA."""
    code = (
        "import sys\n"
        "banned = {'matplotlib', 'sklearn', 'IPython', 'myst_nb', 'transformers', 'peft'}\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in banned: raise ImportError(name)\n"
        "sys.meta_path.insert(0, No())\n"
        "import minilora\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- README and Makefile ------------------------------------------------------------------------


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", read("README.md"), re.M | re.S)


def test_readme_example_has_at_most_ten_lines_and_runs(tmp_path):
    example, imports, recipe = fenced("python")
    lines = [line for line in example.splitlines() if line.strip()]
    assert sum(not line.startswith("import ") for line in lines) <= 10
    answer = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "adapter" / "adapter_config.json").exists()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    exec(imports, {})
    asked_for(recipe, tmp_path)


def asked_for(recipe, tmp_path):
    """The recipe for factors of one's own, on a model that has the layer it names."""
    import torch

    import minilora

    names = {
        "blocks": torch.nn.ModuleList([torch.nn.ModuleDict({"q_proj": torch.nn.Linear(6, 5)})])
    }
    model = minilora.add_lora(torch.nn.ModuleDict(names), minilora.LoRAConfig(r=2))
    A, B = torch.randn(2, 6), torch.randn(5, 2)
    recipe = recipe.replace('"adapter"', repr(str(tmp_path / "own")))
    exec(recipe, {"minilora": minilora, "model": model, "A": A, "B": B})
    found = minilora.lora_layers(model)["blocks.0.q_proj"].delta()
    assert torch.allclose(found, B @ A, atol=1e-5) and (tmp_path / "own").is_dir()


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.M))


DOCUMENTS = ("README.md", "book/how-to-use.md", ".github/CONTRIBUTING.md")


def test_documents_name_commands_and_files_that_exist():
    for name in DOCUMENTS:
        text = read(name)
        asked = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.M))
        assert asked, name
        assert asked <= make_targets(), f"{name}: {asked - make_targets()}"
        for script in re.findall(r"python3? (book[/\\][\w/\\.]+\.py)", text):
            assert (ROOT / script.replace("\\", "/")).exists(), script
    for link in re.findall(r"\]\((?!http)([\w./-]+)\)", read("README.md")):
        if link != "book/_static/rank-plot.png":
            assert (ROOT / link).exists(), link


def test_contributing_names_places_that_exist_and_leaves_no_module_out():
    text = read(".github/CONTRIBUTING.md")
    named = set(re.findall(r"`((?:minilora|tests|book|notebooks)/[\w./]*)`", text))
    assert len(named) > 30
    missing = {path for path in named if not (ROOT / path).exists()}
    assert missing == set()
    # Every file of the library and every module that experiments and lab share is in the table.
    for folder in ("minilora", "minilora/lab", "minilora/experiments"):
        for path in (ROOT / folder).glob("[a-z]*.py"):
            assert re.search(rf"`(?:{folder}/)?{path.stem}(?:\.py)?`", text), path
    assert {"rank", "rates", "placement", "memory"} <= set(re.findall(r"`(\w+)/`", text))


def test_issue_forms_are_valid():
    import yaml

    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[bm]*.yml"))
    assert [form.stem for form in forms] == ["bug", "mistake"]
    for form in forms:
        content = yaml.safe_load(form.read_text(encoding="utf-8"))
        assert content["name"] and content["description"]
        ids = [part["id"] for part in content["body"]]
        assert len(ids) == len(set(ids)) >= 4
        for part in content["body"]:
            assert part["type"] in ("textarea", "input", "dropdown")
            assert part["attributes"]["label"]


def test_readme_has_its_picture():
    picture = ROOT / "book" / "_static" / "rank-plot.png"
    assert picture.exists(), "the plot of chapter 8 belongs at book/_static/rank-plot.png"


def test_readme_pins_the_torch_that_was_tested():
    for name in ("README.md", "book/how-to-use.md"):
        assert set(re.findall(r"torch==([\d.]+)", read(name))) == {pins()["torch"]}, name


def test_experiments_named_in_the_documents_can_be_listed():
    if not (ROOT / "minilora" / "experiments" / "__main__.py").exists():
        pytest.fail("python -m minilora.experiments does not exist")
    answer = subprocess.run(
        [sys.executable, "-m", "minilora.experiments", "list"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "rank" in answer.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_help_lists_every_command():
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in make_targets() - {"help"}:
        assert f"make {target}" in shown


@pytest.mark.skipif(sys.platform == "win32", reason="a script for sh")
class TestFindingPython:
    """book/_tools/env.sh says in plain words what is missing."""

    def run(self, tmp_path, python="", **found: str) -> subprocess.CompletedProcess:
        """Run it where the only interpreters are these: name -> what it prints as its version."""
        bin = tmp_path / "bin"
        bin.mkdir()
        for name, version in found.items():
            major, minor = version.split(".")[:2]
            fits = major == "3" and 11 <= int(minor) <= 13
            script = bin / name.replace("_", ".")
            # Enough of a Python to be asked for its version, and whether it has venv.
            script.write_text(
                "#!/bin/sh\n"
                'case "$2" in\n'
                f"  *implementation*) {f'echo CPython {version}' if fits else 'exit 1'};;\n"
                f"  *ensurepip*) exit 1;;\n"
                f'  *"%d.%d"*) echo {major}.{minor};;\n'
                f"  *) echo {version};;\n"
                "esac\n"
            )
            script.chmod(0o755)
        for tool in ("sh", "rm", "cat", "cksum", "sed"):
            (bin / tool).symlink_to(shutil.which(tool))
        return subprocess.run(
            [str(bin / "sh"), "book/_tools/env.sh"],
            cwd=ROOT,
            env={"PATH": str(bin), "VENV": str(tmp_path / "venv"), "PYTHON": python},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_none_at_all(self, tmp_path):
        answer = self.run(tmp_path)
        assert answer.returncode != 0
        assert "The book needs Python 3.11, 3.12 or 3.13, and none was found" in answer.stderr

    @pytest.mark.parametrize("version", ["3.10.13", "3.14.0", "2.7.18"])
    def test_too_old_or_too_new(self, tmp_path, version):
        answer = self.run(tmp_path, python3=version)
        assert answer.returncode != 0
        assert f"python3 is {version}" in answer.stderr
        assert "PYTHON=/path/to" in answer.stderr

    def test_an_asked_for_one_that_does_not_fit(self, tmp_path):
        answer = self.run(tmp_path, python="python3.10", python3_10="3.10.13", python3="3.12.1")
        assert answer.returncode != 0
        assert "PYTHON=python3.10 is Python 3.10.13" in answer.stderr

    def test_an_asked_for_one_that_is_not_there(self, tmp_path):
        answer = self.run(tmp_path, python="python3.12")
        assert answer.returncode != 0
        assert "cannot be run" in answer.stderr

    def test_a_suitable_one_without_venv_is_found_behind_an_old_one(self, tmp_path):
        answer = self.run(tmp_path, python3="3.10.13", python3_12="3.12.1")
        assert answer.returncode != 0
        assert "apt-get install python3.12-venv" in answer.stderr
