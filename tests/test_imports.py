"""The import rule: stages know earlier stages and leaves, and running a bundle needs no PyTorch."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "moe_export"
STAGES = [
    "sources", "recognize", "capture", "lower", "optimize", "quantize", "pack", "gpu", "engine",
    "verify", "package", "replay", "benchmark",
]  # fmt: skip
LEAVES = ["errors", "plan", "progress", "tolerances", "generation", "ops", "runners", "telemetry"]
COMPOSITION = ["pipeline", "refusals", "dry_run", "estimate", "cli", "__init__", "__main__"]
MAY_IMPORT_TORCH = ["sources", "recognize", "capture", "ops", "runners"]
HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "transformers"}


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def area(name):
    """``moe_export.sources.source`` lies in ``sources``; the package itself in ``__init__``."""
    return [*name.split("."), "__init__"][1]


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def import_nodes(tree, inside_functions):
    """Import statements that run; those of functions only if asked for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif is_type_checking(node):
            for other in node.orelse:
                yield from import_nodes(other, inside_functions)
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from import_nodes(node, inside_functions)


def imported(name, *, inside_functions):
    """Full names of the modules that ``name`` imports."""
    found = set()
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for node in import_nodes(tree, inside_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        assert node.level == 0, f"{name} has a relative import"
        found.add(node.module)
        # ``from moe_export.ops import spec`` imports the module ``spec``.
        full = {f"{node.module}.{alias.name}" for alias in node.names}
        found |= full & set(MODULES)
    return found


def own_imports(name):
    """Areas of the package that ``name`` imports, also in its functions, without its own."""
    found = imported(name, inside_functions=True) & set(MODULES)
    # A package that is only named on the way to a module says nothing.
    return {area(module) for module in found if module != "moe_export"} - {area(name)}


def test_every_module_has_a_place_in_the_rule():
    known = {*STAGES, *LEAVES, *COMPOSITION}
    assert {area(name) for name in MODULES} <= known


@pytest.mark.parametrize("name", [n for n in MODULES if area(n) in STAGES])
def test_stage_imports_earlier_stages_and_leaves(name):
    earlier = STAGES[: STAGES.index(area(name))]
    assert own_imports(name) <= {*earlier, *LEAVES}


@pytest.mark.parametrize("name", [n for n in MODULES if area(n) in LEAVES])
def test_leaf_imports_no_stage(name):
    assert own_imports(name) <= set(LEAVES)


@pytest.mark.parametrize("name", [n for n in MODULES if area(n) not in MAY_IMPORT_TORCH])
def test_torch_stays_where_it_belongs(name):
    roots = {module.split(".")[0] for module in imported(name, inside_functions=False)}
    assert not roots & {"torch", "transformers"}


def reachable(name):
    """Modules that importing ``name`` imports, parent packages included."""
    seen, todo = set(), [name]
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        found = imported(module, inside_functions=False) & set(MODULES)
        parents = {m.rpartition(".")[0] for m in {module, *found}} & set(MODULES)
        todo += found | parents
    return seen


@pytest.mark.parametrize("name", sorted(reachable("moe_export.package.bundle")))
def test_running_a_bundle_never_reaches_heavy_packages(name):
    roots = {module.split(".")[0] for module in imported(name, inside_functions=False)}
    assert not roots & HEAVY


@pytest.mark.parametrize("name", [n for n in MODULES if area(n) != "__main__"])
def test_every_module_imports(name):
    importlib.import_module(name)


def test_public_load_survives_building():
    """A stage's folder of the same name would replace the function once it is imported."""
    import moe_export

    assert callable(moe_export.build)
    importlib.import_module("moe_export.sources.source")
    assert callable(moe_export.load)
