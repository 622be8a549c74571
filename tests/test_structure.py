"""The shape of the package: a small core, arrows that go one way, nothing heavy imported early."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "minilora"
# Each module may import those before it. The first twelve are what `import minilora` loads.
ORDER = [
    *("config", "layers", "initializers", "dora", "targets", "state", "encoders", "merging"),
    *("adapt", "folder", "files", "accounting"),
    *("variants.freezing", "variants.loraplus"),
    *("variants.lora_fa", "variants.linear_targets", "variants.vera", "variants.adalora"),
    *("variants.bitfit", "variants.head", "variants.adapters", "quantize", "serving"),
]
SKIP = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def path_of(module: str) -> Path:
    return PACKAGE / (module.replace(".", "/") + ".py")


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank lines, no comments, no docstrings."""
    source = path.read_text(encoding="utf-8")
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SKIP and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            text = body[0].value
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                lines -= set(range(body[0].lineno, body[0].end_lineno + 1))
    return len(lines)


def imported_at_once(module: str) -> set[str]:
    """The package's modules that are imported with this one: not those imported in functions."""
    found: set[str] = set()

    def look(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minilora"):
                inner = node.module.removeprefix("minilora").removeprefix(".")
                found.update([inner] if inner else [alias.name for alias in node.names])
            elif isinstance(node, ast.Import):
                found.update(
                    alias.name.removeprefix("minilora.")
                    for alias in node.names
                    if alias.name.startswith("minilora")
                )
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            elif isinstance(node, (ast.If, ast.Try)):
                look(node.body)

    look(ast.parse(path_of(module).read_text(encoding="utf-8")).body)
    return found


def test_counting_code_lines(tmp_path):
    text = (
        '"""Doc."""\n# comment\n\nx = 1  # why\n\n\ndef f():\n    """Doc.\n\n    More.\n    """\n'
    )
    (tmp_path / "m.py").write_text(text + "    return (\n        x\n    )\n")
    assert code_lines(tmp_path / "m.py") == 5


def test_the_core_can_be_read_in_a_sitting():
    core = ["config", "layers", "adapt", "files"]
    assert sum(code_lines(path_of(name)) for name in core) < 900
    assert sum(code_lines(path_of(name)) for name in ORDER[:12]) < 1750
    assert max(code_lines(path_of(name)) for name in ORDER) < 330


@pytest.mark.parametrize("module", ORDER)
def test_arrows_go_one_way(module):
    earlier = set(ORDER[: ORDER.index(module)])
    assert imported_at_once(module) <= earlier


def test_every_module_of_the_core_and_of_the_variants_is_in_the_order():
    variants = {f"variants.{path.stem}" for path in (PACKAGE / "variants").glob("[a-z]*.py")}
    assert variants <= set(ORDER)
    loaded = imported_at_once("__init__")
    assert loaded <= set(ORDER[:12])
    assert set().union(*map(imported_at_once, loaded)) <= set(ORDER[:12])
