"""Short English with true labels: the first words of docstrings, and the library each is from.

The texts were taken once from installed packages by `harvest` and are shipped with the book, so
that numbers do not move with the versions that a reader has:

    python -m minilora.lab.docstrings FOLDER

writes ``docstrings.json.gz`` and ``docstrings.txt`` (sources, versions, licences) there. Names of
libraries are replaced by the word "package" and markup is taken off, for either would give the
label away. What is written twice is kept once. Every file of a library lies in one of the three
splits with all of its docstrings, so that no text of a file that is learnt from is tested on.
"""

from __future__ import annotations

import ast
import functools
import gzip
import hashlib
import importlib.util
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

SHIPPED = Path(__file__).parent / "shipped"
FILE = "docstrings.json.gz"

#: {name to import: name of the distribution}, in the order of the classes.
LIBRARIES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "torch": "torch",
}
SPLITS = ("train", "validation", "test")
SHARES = (0.55, 0.15, 0.30)

#: Folders of tests, of code from elsewhere, and of machinery without users.
LEFT_OUT = {
    *("tests", "testing", "_vendor", "externals", "_lib", "array_api_compat"),
    *("array_api_extra", "_inductor", "_dynamo", "_refs", "_decomp", "_prims"),
    *("_functorch", "_numpy", "_higher_order_ops", "_subclasses", "fx", "_export"),
    *("f2py", "_pyinstaller", "distutils", "_typing", "typing", "onnx"),
    *("ao", "hipify", "_native"),
}
MOST = 160  # docstrings of one module, so that no module is most of its library
WINDOW = 8  # words: two texts that share so many in a row count as the same
LONGEST = 240  # characters
CLASSES = 35

_NAME = re.compile(
    r"(?:\b(?:np|plt|mpl)\b|\w*(?:numpy|scipy|sklearn|scikits?(?:.{0,2}learn)?|matplotlib|pyplot|torch"
    r"|aten\b)\w*)(?:\.\w+)*",
    re.IGNORECASE,
)
_ROLE = re.compile(r":[a-z:]+:`[~!.]*(?:[^`<]*<)?([^`>]+)>?`")
_SECTION = re.compile(
    r"\n[ \t]*(?:\w[\w ]*\n[ \t]*[-=~]{3,}|(?:Args|Arguments|Returns?|Raises|Examples?|Notes?|"
    r"Shape|Inputs?|Outputs?|Keyword args|Parameters)\s*:|>>>|\.\. )"
)


@dataclass(frozen=True)
class Doc:
    """One text: its library, its module (as in "scipy.stats"), its file, its split."""

    text: str
    library: str
    module: str
    file: str
    split: str


@dataclass(frozen=True)
class Question:
    """A question about the texts: ``classes`` are the answers, and each text has one of them.

    ``texts[split]`` and ``labels[split]`` (numbers of classes) belong together, and
    ``files[split]`` says from which file each text is.
    """

    classes: tuple[str, ...]
    texts: dict[str, list[str]]
    labels: dict[str, np.ndarray]
    files: dict[str, list[str]]

    def draw(self, count: int, seed: int) -> np.ndarray:
        """The rows of ``count`` texts to learn from, drawn without replacement.

        Raises:
            ValueError: There are not so many.
        """
        there = len(self.texts["train"])
        if not 1 <= count <= there:
            raise ValueError(f"count must be from 1 to {there}, but is {count}")
        return np.random.default_rng(seed).permutation(there)[:count]


@functools.cache
def docs() -> tuple[Doc, ...]:
    """All shipped texts, in the order of their libraries and files.

    Raises:
        FileNotFoundError: The package was installed without its data.
    """
    path = SHIPPED / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: install minilora whole, or make the file anew with "
            f"`python -m minilora.lab.docstrings {SHIPPED}`"
        )
    found = []
    for library, file, split, texts in json.loads(gzip.decompress(path.read_bytes()))["files"]:
        module = _module(library, file)
        found += [Doc(text, library, module, f"{library}/{file}", split) for text in texts]
    return tuple(found)


def fingerprint() -> str:
    """The SHA-256 of the shipped file, for a recording to say which texts it has seen."""
    return hashlib.sha256((SHIPPED / FILE).read_bytes()).hexdigest()


def by_library(most: int = 1000) -> Question:
    """Which of five libraries is it from? At most so many texts to test and half as many to choose.

    A fixed draw of each split; all that there is to train.
    """
    return _question(docs(), tuple(LIBRARIES), lambda doc: doc.library, most)


def by_module(most: int = 1000) -> Question:
    """Which of the 35 largest modules is it from? Those with texts enough in all three splits."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(SPLITS, 0))
    for doc in docs():
        counts[doc.module][doc.split] += 1
    fit = [m for m, n in counts.items() if n["train"] >= 20 and n["validation"] >= 4]
    fit = [m for m in fit if counts[m]["test"] >= 8]
    largest = sorted(fit, key=lambda m: (-sum(counts[m].values()), m))[:CLASSES]
    inside = [doc for doc in docs() if doc.module in largest]
    return _question(inside, tuple(sorted(largest)), lambda doc: doc.module, most)


def _question(
    docs_: Iterable[Doc], classes: tuple[str, ...], label: Callable[[Doc], str], most: int
) -> Question:
    docs_ = list(docs_)
    of = {split: [doc for doc in docs_ if doc.split == split] for split in SPLITS}
    for split, count in (("validation", most // 2), ("test", most)):
        order = np.random.default_rng(0).permutation(len(of[split]))[:count]
        of[split] = [of[split][i] for i in sorted(order)]
    return Question(
        classes,
        {split: [doc.text for doc in part] for split, part in of.items()},
        {
            split: np.array([classes.index(label(doc)) for doc in part])
            for split, part in of.items()
        },
        {split: [doc.file for doc in part] for split, part in of.items()},
    )


def windows(text: str, words: int = WINDOW) -> set[str]:
    """Every run of so many words in a row, in lower case; of a shorter text the text itself."""
    found = re.findall(r"\w+", text.lower())
    return {" ".join(found[i : i + words]) for i in range(max(1, len(found) - words + 1))}


# --- the harvest, which is done once ---------------------------------------------------------


def plain(docstring: str) -> str:
    """What comes before the first section, as one line: no markup, no names of libraries.

    A long one ends with a whole word, after 240 characters at most; one of fewer than five words
    is no text, and comes back empty.
    """
    text = _SECTION.split("\n" + docstring.strip())[0].strip()
    text = _ROLE.sub(r"\1", text)
    text = re.sub(r"[`*~]|\\\w+|:\w+:", "", re.sub(r"\s+", " ", text))
    text = _NAME.sub("package", text).strip()
    if len(text) > LONGEST:
        text = text[: LONGEST + 1].rsplit(" ", 1)[0]
    return text if len(re.findall(r"[A-Za-z]{2,}", text)) >= 5 else ""


def _module(library: str, file: str) -> str:
    return f"{library}.{file.split('/')[0].removesuffix('.py')}"


def _found(library: str) -> Iterator[tuple[str, str]]:
    """(file, text) of every public function and class of an installed library."""
    spec = importlib.util.find_spec(library)
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent
    for path in sorted(root.rglob("*.py")):
        file = path.relative_to(root)
        if LEFT_OUT & set(file.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
                text = plain(ast.get_docstring(node) or "")
                if text:
                    yield file.as_posix(), text


def _spread(files: dict[str, list[str]], library: str) -> dict[str, str]:
    """{file: split}: in each module, and over the modules of few files, near the shares."""
    modules: dict[str, list[str]] = defaultdict(list)
    for file in files:
        modules[_module(library, file)].append(file)
    groups: dict[str, list[str]] = defaultdict(list)
    for module, of in modules.items():
        groups[module if len(of) >= 3 else ""] += of
    found = {}
    for of in groups.values():
        total, have = sum(len(files[file]) for file in of), [0.0, 0.0, 0.0]
        for file in sorted(of, key=lambda file: (-len(files[file]), file)):
            lacks = [share * total - got for share, got in zip(SHARES, have, strict=True)]
            at = int(np.argmax(lacks))
            have[at] += len(files[file])
            found[file] = SPLITS[at]
    return found


def harvest() -> dict[str, object]:
    """Take the texts from the packages that are installed here; what `docs` reads."""
    seen: set[str] = set()
    rows, versions = [], {}
    for library, distribution in LIBRARIES.items():
        versions[distribution] = metadata.version(distribution)
        files: dict[str, list[str]] = defaultdict(list)
        counts: dict[str, int] = defaultdict(int)
        found = list(_found(library))
        for i in np.random.default_rng(0).permutation(len(found)):
            file, text = found[i]
            module, parts = _module(library, file), windows(text)
            if counts[module] < MOST and not parts & seen:
                counts[module] += 1
                files[file].append(text)
                seen |= parts
        splits = _spread(files, library)
        rows += [[library, file, splits[file], files[file]] for file in sorted(files)]
    return {"versions": versions, "files": rows}


def licences(versions: dict[str, str]) -> str:
    """Where the texts are from, and under which licences they may be passed on."""
    parts = [
        "docstrings.json.gz holds the first paragraphs of docstrings of five Python libraries,\n"
        "shortened, with markup and the libraries' names taken out, by\n"
        "`python -m minilora.lab.docstrings`. They are the work of the libraries' authors and are\n"
        "passed on under the libraries' own licences, which follow.\n"
    ]
    for distribution, version in versions.items():
        files = metadata.files(distribution) or []
        info = [f for f in files if ".dist-info" in f.parts[0]]
        names = [f for f in info if f.name.upper().startswith(("LICENSE", "COPYING"))]
        text = str(min(names, key=lambda f: (len(f.parts), str(f))).read_text())
        # Some add the licences of code that they bundle, from which no text was taken.
        text = re.split(r"\n----\n", str(text))[0]
        parts.append(f"{'=' * 80}\n{distribution} {version}\n{'=' * 80}\n\n{text.strip()}\n")
    return "\n".join(parts)


def _main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = harvest()
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    (folder / FILE).write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    versions = found["versions"]
    assert isinstance(versions, dict)
    (folder / "docstrings.txt").write_text(licences(versions), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m minilora.lab.docstrings FOLDER")
    _main(Path(sys.argv[1]))
