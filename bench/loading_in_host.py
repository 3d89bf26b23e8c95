"""One cold load of a transformer file in a process of the host's own: bytes read, memory and time.

python tests/host/launch.py bench/loading_in_host.py ComfyUI_FOLDER ours|native FILE
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

HOST, LOADER, FILE = Path(sys.argv[1]).resolve(), sys.argv[2], Path(sys.argv[3])

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch  # noqa: E402

from tests.host.inside import enter, module_without_nodes  # noqa: E402

enter(HOST)
import comfy.sd  # noqa: E402

EVERY = 0.002  # seconds between two looks at the memory


def counter(file: str, name: str) -> int:
    """Of this process, from one of its tables in /proc."""
    lines = Path(f"/proc/self/{file}").read_text(encoding="ascii").splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(value)


class Anonymous(threading.Thread):
    """The most memory that is not of a file, in bytes, until `stop`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first = self.most = self.look()
        self.stop = threading.Event()

    def look(self) -> int:
        return 1024 * counter("status", "RssAnon")

    def run(self) -> None:
        while not self.stop.wait(EVERY):
            self.most = max(self.most, self.look())


def forget(path: Path) -> None:
    """So that the next read is from the disk."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load() -> object:
    if LOADER == "native":
        return comfy.sd.load_diffusion_model(str(FILE), {"dtype": torch.bfloat16})
    return module_without_nodes("nodes.host.loading.model").load_patcher(FILE, "bf16")


def main() -> None:
    if LOADER == "ours":
        module_without_nodes("nodes.host.loading.model")  # imports are no part of it
    forget(FILE)
    memory = Anonymous()
    memory.start()
    read, called, start = counter("io", "read_bytes"), counter("io", "rchar"), time.perf_counter()
    patcher = load()
    seconds = time.perf_counter() - start
    memory.stop.set()
    memory.join()
    parameters = list(patcher.model.diffusion_model.parameters())
    found = {
        "seconds": seconds,
        "read": counter("io", "read_bytes") - read,
        "called": counter("io", "rchar") - called,
        "anonymous": max(memory.most, memory.look()) - memory.first,
        "tensors": sum(value.nbytes for value in parameters),
        "dtypes": sorted({str(value.dtype) for value in parameters}),
    }
    sys.stdout.write(json.dumps(found) + "\n")


main()
