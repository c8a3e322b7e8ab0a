"""Who may import whom: the sources, walked with ast, against one table."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(p for package in ("llamactl", "stages") for p in (ROOT / package).rglob("*.py"))

# What a room may import from, of ours. `model.config` and `artifacts.records` are plain values without torch.
MAY_IMPORT = {
    "llamactl": set(),
    "llamactl.__main__": {"llamactl.cli"},
    "llamactl.errors": set(),
    "llamactl.ui": set(),
    "llamactl.hardware": {"llamactl.errors"},
    "llamactl.signals": {"llamactl.ui"},
    "llamactl.bootstrap": set(),
    "llamactl.energy": set(),
    "llamactl.grid": {"llamactl.errors"},
    "llamactl.carbon": {"llamactl.errors", "llamactl.hardware", "llamactl.grid"},
    "llamactl.accounts": {"llamactl.errors", "llamactl.carbon", "llamactl.grid", "llamactl.artifacts"},
    "llamactl.footprints": {
        "llamactl",
        "llamactl.ui",
        "llamactl.hardware",
        "llamactl.carbon",
        "llamactl.grid",
        "llamactl.artifacts.ancestry",
        "llamactl.artifacts.manifest",
    },
    "llamactl.lineage": {"llamactl", "llamactl.ui", "llamactl.carbon", "llamactl.artifacts"},
    "llamactl.cards": {  # what a lineage says, and what it took
        "llamactl.errors",
        "llamactl.ui",
        "llamactl.carbon",
        "llamactl.accounts",
        "llamactl.footprints",
        "llamactl.lineage",
        "llamactl.artifacts",
    },
    "llamactl.options": {"llamactl.ui", "llamactl.artifacts.records"},
    "llamactl.artifacts": {
        "llamactl",
        "llamactl.errors",
        "llamactl.ui",
        "llamactl.hardware",
        "llamactl.signals",
        "llamactl.energy",  # a run measures what it takes
        "llamactl.artifacts",
    },
    "llamactl.text": {
        "llamactl.errors",
        "llamactl.signals",  # a corpus is encoded, and a tokenizer learned, by processes of their own
        "llamactl.artifacts",
        "llamactl.text",
    },
    "llamactl.model.config": {"llamactl.errors"},
    "llamactl.model": {
        "llamactl.errors",
        "llamactl.hardware",
        "llamactl.artifacts.checkpoint",
        "llamactl.artifacts.files",  # kernels are kept whole or not at all
        "llamactl.artifacts.tensors",  # Later: a tensor that is gathered when it is written
        "llamactl.ui",  # that kernels are being compiled, in the background of whoever samples
        "llamactl.text.tokenizer",
        "llamactl.model",
    },
    "llamactl.train": {
        "llamactl.errors",
        "llamactl.signals",
        "llamactl.ui",
        "llamactl.hardware",
        "llamactl.carbon",  # a plan counts as the account does
        "llamactl.artifacts",
        "llamactl.text",
        "llamactl.model",
        "llamactl.train",
    },
    "llamactl.align": {
        "llamactl.errors",
        "llamactl.artifacts.records",
        "llamactl.artifacts.jsonl",  # Found: a record, and where it stood
        "llamactl.text",
        "llamactl.model",
        "llamactl.align",
        "llamactl.bootstrap",
    },
    "llamactl.evals": {
        "llamactl.bootstrap",
        "llamactl.model",
        "llamactl.text",
        "llamactl.artifacts.records",
        "llamactl.evals",
    },
    "llamactl.evals.bench": {  # reads the files of others as they are
        "llamactl.errors",
        "llamactl.bootstrap",
        "llamactl.model",
        "llamactl.text",
        "llamactl.artifacts.jsonl",
        "llamactl.artifacts.records",
        "llamactl.evals",
    },
    "llamactl.pictures": {
        "llamactl.errors",
        "llamactl.ui",
        "llamactl.bootstrap",
        "llamactl.artifacts",
        "llamactl.text.judging",  # what tells one prompt from another
        "llamactl.evals.self_bleu",
        "llamactl.pictures",
    },
    "llamactl.formats": {"llamactl.errors", "llamactl.artifacts", "llamactl.formats"},
    "llamactl.cli": {"llamactl", "llamactl.ui", "llamactl.errors", "stages"},
    "stages": {"llamactl"},
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    while module not in MAY_IMPORT:
        module = module.rpartition(".")[0]
    return module


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert all(alias.name != "*" for alias in node.names), f"{path}: import *"
            for alias in node.names:
                below = ROOT.joinpath(*(node.module or "").split("."), alias.name)
                is_module = below.is_dir() or below.with_suffix(".py").exists()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module or "")
    return {name for name in found if name.partition(".")[0] in ("llamactl", "stages")}


def allowed(name: str, table: set[str]) -> bool:
    return any(name == entry or (entry not in ("", "llamactl") and name.startswith(entry + ".")) for entry in table)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_follow_the_table(path: Path) -> None:
    module = module_of(path)
    if module.startswith("stages"):
        bad = {name for name in imports(path) if not name.startswith("llamactl") or name == "llamactl.cli"}
    else:
        bad = {name for name in imports(path) if not allowed(name, MAY_IMPORT[room_of(module)])}
    assert not bad


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_nothing_that_runs_data(path: Path) -> None:
    """No pickle, no torch.load or save, no eval or exec: data is never code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            assert not names & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "torch.save", "eval", "exec", "np.load", "numpy.load"}


def test_stages_define_no_classes() -> None:
    for path in (ROOT / "stages").glob("*.py"):
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)], path
