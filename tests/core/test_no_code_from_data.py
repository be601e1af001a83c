"""The code has none of the calls that carry out what is in data: read from its syntax, not from its text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for folder in ("controlnext", "export", "engines", "runtime", "examples", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "_pickle", "pickletools"}
CALLS = {
    **dict.fromkeys(["eval", "exec", "compile", "__import__"], "carries out text"),
    **dict.fromkeys(["os.system", "os.popen", "subprocess.getoutput"], "starts a shell"),
    **dict.fromkeys(["yaml.load", "yaml.full_load", "yaml.unsafe_load"], "makes objects of any class"),
    **dict.fromkeys(["torch.jit.load", "torch.hub.load", "torch.package"], "carries out code in a file"),
    "apply_chat_template": "carries out the template of a checkpoint",
}
SAYS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "AutoTokenizer.from_pretrained": ("trust_remote_code", False),
}
"""Calls that are safe with one argument alone, which they have to give."""
NEVER = {"shell": True, "allow_pickle": True, "trust_remote_code": True, "weights_only": False}
"""Arguments that no call has."""
ALLOWED = {"benchmarks/scale.py: cloudpickle": "the benchmark's own class, by value, to Ray's own processes"}


def _dotted(node: ast.expr) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    # what has no name of its own, such as the result of a call, has a point of its own
    return ".".join([node.id if isinstance(node, ast.Name) else "", *reversed(parts)])


def _imports(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or "", *(alias.name for alias in node.names)]
    else:
        return
    yield from {part for name in names for part in name.split(".")} & MODULES


def _faults(node: ast.AST) -> Iterator[str]:
    yield from _imports(node)
    if not isinstance(node, ast.Call):
        return
    name = _dotted(node.func)
    given = {one.arg: one.value.value for one in node.keywords if isinstance(one.value, ast.Constant)}
    for called, reason in CALLS.items():
        builtin = called in ("compile", "eval", "exec")
        if name == called or (not builtin and name.endswith(f".{called}")):
            yield f"{name} {reason}"
    for called, (argument, value) in SAYS.items():
        if (name == called or name.endswith(f".{called}")) and given.get(argument) is not value:
            yield f"{name} without {argument}={value}"
    yield from (f"{name} with {key}={value}" for key, value in NEVER.items() if given.get(key) is value)


def faults_of(code: str) -> list[str]:
    return [fault for node in ast.walk(ast.parse(code)) for fault in _faults(node)]


def test_no_code_is_carried_out_from_data() -> None:
    found = {f"{path.relative_to(ROOT)}: {fault}" for path in FILES for fault in faults_of(path.read_text())}
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from ray import cloudpickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "AutoTokenizer.from_pretrained(path)",
        "transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
        "tokenizer.apply_chat_template(messages)",
    ],
)
def test_the_rule_finds(code: str) -> None:
    assert faults_of(code)


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "yaml.safe_load(text)",
        "re.compile(text)",
        "module.eval()",
        "ast.literal_eval(text)",
        "'pickle and eval(text)'",
    ],
)
def test_the_rule_leaves(code: str) -> None:
    assert not faults_of(code)
