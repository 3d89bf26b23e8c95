"""The house: who may import whom, one loop over blocks, short files, and a library that stands alone."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST_MODULES = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "folder_paths",
    "nodes",
    "server",
    "execution",
    "latent_preview",
}


# Arrows point down: a room imports from rooms below it, and within itself.
ROOMS = (
    "nodes",
    "nodes.host",
    "zimage_core",
    "zimage_core.generate",
    "zimage_core.train",
    "zimage_core.cluster",
    "zimage_core.pipeline",
    "zimage_core.weights",
    "zimage_core.conditions",
    "zimage_core.sampling",
    "zimage_core.prompt",
    "zimage_core.acceleration",
    "zimage_core.model",
    "zimage_core.config",
)
BLOCKS = {"layers", "noise_refiner", "context_refiner", "siglip_refiner", "control_layers"}


def sources() -> Iterator[tuple[str, bool, ast.Module]]:
    """Every module of the product: dotted name, whether it is a package, and its syntax."""
    for folder in ("nodes", "zimage_core"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            package = path.name == "__init__.py"
            yield name.removesuffix(".__init__"), package, ast.parse(path.read_text(encoding="utf-8"))


def import_graph() -> dict[str, set[str]]:
    """Module -> the product's modules that it imports, wherever in the file, also for types only."""
    found = list(sources())
    modules = {name for name, *_ in found}
    graph: dict[str, set[str]] = {}
    for name, package, tree in found:
        here = name.split(".") if package else name.split(".")[:-1]
        graph[name] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = here[: len(here) - node.level + 1] + (node.module.split(".") if node.module else [])
                for alias in node.names:
                    target = ".".join((*base, alias.name))
                    graph[name].add(target if target in modules else ".".join(base))
    return graph


def room(module: str) -> str:
    return max((r for r in ROOMS if module == r or module.startswith(f"{r}.")), key=len)


def test_imports_have_no_circle_and_point_down() -> None:
    graph = import_graph()
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle
    assert sum(map(len, graph.values())) > 200, "imports were not found: this proves nothing"
    upward = [
        f"{module} imports {target}"
        for module, targets in graph.items()
        for target in targets
        if ROOMS.index(room(target)) < ROOMS.index(room(module))
    ]
    assert upward == []


def test_the_base_imports_nothing_that_is_built_on_it() -> None:
    graph = import_graph()
    seen, open_ = set(), ["zimage_core.model.s3dit"]
    while open_:
        module = open_.pop()
        seen.add(module)
        open_ += graph[module] - seen
    names = (
        "config",
        "model.attention",
        "model.backends",
        "model.fused",
        "model.hooks",
        "model.memo",
        "model.modulation",
        "model.rope",
        "model.operations",
        "model.s3dit",
        "model.sequence",
    )
    assert seen == {f"zimage_core.{name}" for name in names}


def test_one_loop_runs_the_blocks() -> None:
    """Loops over a stack elsewhere make scales or hold weights; none hands tokens from block to block."""
    loops = []
    for module, _, tree in sources():
        if module.startswith("zimage_core.train") or module in ("zimage_core.model.text_encoder",):
            continue
        for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
            for loop in (n for n in ast.walk(function) if isinstance(n, ast.For)):
                names = {n.id for n in ast.walk(loop.target) if isinstance(n, ast.Name)}
                called = {
                    n.func.id
                    for n in ast.walk(loop)
                    if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
                }
                stacks = {n.attr for n in ast.walk(loop.iter) if isinstance(n, ast.Attribute)} & BLOCKS
                over_blocks = stacks or "getattr" in ast.dump(loop.iter)
                if over_blocks and (names & called or "partial" in called):
                    loops.append(f"{module}.{function.name}")
    assert loops == ["zimage_core.model.s3dit.run"]


def test_files_have_a_readable_size() -> None:
    paths = [
        p
        for folder in ("nodes", "zimage_core", "web")
        for end in ("py", "js")
        for p in (ROOT / folder).rglob(f"*.{end}")
    ]
    lines = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in paths}
    limits = {"zimage_core/model/s3dit.py": 350}
    assert {name: n for name, n in lines.items() if n > limits.get(name, 400)} == {}


def imports(path: Path) -> set[str]:
    """Top-level names of the absolute imports in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def test_arrows_point_one_way() -> None:
    """nodes -> nodes/host -> zimage_core; imports are relative: the host imports us under another name."""
    for path in (ROOT / "zimage_core").rglob("*.py"):
        assert not imports(path) & (HOST_MODULES | {"zimage_core"}), path
    for path in (ROOT / "nodes").rglob("*.py"):
        assert "zimage_core" not in imports(path), path
        source = path.read_text(encoding="utf-8")
        assert "comfy.ldm.lumina" not in source, f"{path} depends on the host's own Z-Image"
    for path in (ROOT / "nodes").glob("*.py"):
        assert imports(path) <= {"__future__", "comfy", "comfy_api", "torch", "typing"}, path


def test_the_library_imports_alone() -> None:
    """From another folder, without the host, without loading transformers or touching CUDA."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import zimage_core, torch;"
        "assert not {'transformers', 'comfy', 'diffusers'} & set(sys.modules);"
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
