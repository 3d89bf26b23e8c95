"""The library stands alone: no ComfyUI, nothing slow at import, no absolute imports of itself."""

from __future__ import annotations

import ast
import subprocess
import sys
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
