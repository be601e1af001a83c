"""The four code directories: one package, imports in one direction, a runtime that is light to import, and
the document that tells of them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from controlnext.types import Precision

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "controlnext": ROOT / "controlnext",
    "controlnext.export": ROOT / "export",
    "controlnext.engines": ROOT / "engines",
    "controlnext.runtime": ROOT / "runtime",
}
CORE = {"controlnext", "controlnext.bundle", "controlnext.families"}
_TRAINED = CORE | {"controlnext.models", "controlnext.weights", "controlnext.reference"}
_RUN = {"controlnext.engines", "controlnext.runtime"}
_BELOW = _TRAINED | _RUN | {"controlnext.export", "controlnext.evaluation"}
# part -> the other parts that it may import
ALLOWED = {
    **dict.fromkeys(CORE, CORE),
    "controlnext.models": CORE,
    "controlnext.weights": CORE | {"controlnext.models"},
    "controlnext.reference": _TRAINED,
    "controlnext.export": _TRAINED,
    "controlnext.engines": CORE,
    "controlnext.runtime": CORE | _RUN,
    "controlnext.runtime.serving": CORE | _RUN,
    "controlnext.runtime.triton": CORE | _RUN,
    "controlnext.runtime.cluster": CORE | _RUN | {"controlnext.runtime.serving"},
    "controlnext.evaluation": _BELOW,
    "controlnext.bench": _BELOW,
    "controlnext.cli": _BELOW
    | {
        "controlnext.bench",
        "controlnext.runtime.cluster",
        "controlnext.runtime.serving",
        "controlnext.runtime.triton",
    },
    "controlnext.__main__": {"controlnext.cli"},
}
HEAVY = ("torch", "diffusers", "transformers", "onnx", "fastapi", "uvicorn", "prometheus_client")


def _modules() -> Iterator[tuple[str, Path]]:
    """Name and file of every module of the package."""
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


def _imported(path: Path) -> set[str]:
    """The names that a module imports, here as far as they may be modules of this package."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.partition(".")[0] == "controlnext"}


def _part(module: str) -> str:
    """Which of the parts in ``ALLOWED`` a dotted name belongs to."""
    parts = [part for part in ALLOWED if f"{module}.".startswith(f"{part}.")]
    return max(parts, key=len)


def test_pyproject_lists_exactly_the_packages_that_exist() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    existing = {name for name, path in _modules() if path.name == "__init__.py"}
    assert set(listed) == existing | {
        "optimum.commands.register"
    }  # optimum's: tests/cli/test_optimum_register.py
    assert len(listed) == len(set(listed))


def test_imports_go_one_way() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in _modules()
        for name in sorted(_imported(path))
        if _part(name) not in {*ALLOWED[_part(module)], _part(module)}
    ]
    assert not wrong


def test_no_file_imports_itself_by_others() -> None:
    """Imports within functions and for types count."""
    files = dict(_modules())

    def file_of(name: str) -> str:
        while name not in files:
            name = name.rpartition(".")[0]
        return name

    graph = {name: {file_of(other) for other in _imported(path)} - {name} for name, path in files.items()}
    TopologicalSorter(graph).prepare()


def test_a_public_class_has_a_name_of_its_own() -> None:
    """In the whole tree: who searches for it finds one definition."""
    scripts = [path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    owners: dict[str, list[str]] = {}
    for path in [*(path for _, path in _modules()), *scripts]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                owners.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in owners.items() if len(paths) > 1}


def test_precisions_are_named_in_one_file() -> None:
    """Elsewhere code goes by what :class:`Precision` knows of each: a new one is an entry there."""
    named = {
        f"{module} names {node.value}"
        for module, path in _modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in [*Precision]
        # how schema 1 called what was decided about a graph's layers
        if module not in ("controlnext.types", "controlnext.bundle.schema")
    }
    assert not named


@pytest.mark.parametrize(
    "module", ["controlnext", "controlnext.engines", "controlnext.runtime", "controlnext.cli"]
)
def test_import_is_light(module: str) -> None:
    """In a fresh interpreter none of the build machine's and the server's libraries is loaded."""
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_of_the_runtime_loads_little() -> None:
    """As quick as its parts: 307 modules measured, 184 of them NumPy's."""
    code = "import sys; old = set(sys.modules); import controlnext.runtime; print(*set(sys.modules) - old)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    packages = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    # Cython and cffi come with NumPy before 2 and Pillow before 11
    older = {name for name in packages if name.startswith(("cffi", "_cffi", "cython", "_cython"))}
    assert packages - older <= {"PIL", "controlnext", "msgspec", "numpy", "typing_extensions"}
    assert len(loaded) < 450


def test_the_document_names_every_package_and_no_file_that_is_not_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    (tree,) = re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)
    stack: list[Path] = []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        stack[depth:] = [Path(name)]
        assert (ROOT / Path(*stack)).exists(), line
    packages = {path.parent for _, path in _modules() if path.name == "__init__.py"}
    for package in packages - {ROOT / "controlnext"}:
        assert f"{package.name}/" in tree, package
    files = {path.name for _, path in _modules()} | {path.name for path in (ROOT / "tests").rglob("*.py")}
    assert {Path(name).name for name in re.findall(r"`?([\w/]+\.py)`?", text)} <= files
