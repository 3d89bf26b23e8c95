"""python -m tests.contracts.extract --host PATH: record the nodes of that ComfyUI which our graphs use.

With the record in hosts/, tests on any ComfyUI show that the shipped graphs are legal on that one. Run it in
that ComfyUI's environment, for the newest version at hand, when a shipped graph uses another node.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.contracts.object_info import HOSTS, of_server, save
from tests.contracts.shipped import node_types
from tests.contracts.update import is_ours
from tests.host.server import ComfyServer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", type=Path, required=True, help="a ComfyUI's folder")
    host = parser.parse_args().host
    wanted = node_types()
    with tempfile.TemporaryDirectory() as base:
        with ComfyServer(host, Path(base), "--disable-api-nodes") as server:
            version = server.get_json("/system_stats")["system"]["comfyui_version"]
            found = of_server(server, lambda name, _: name in wanted)
    if missing := wanted - found.keys():
        sys.exit(f"ComfyUI {version} has no {', '.join(sorted(missing))}.")
    theirs = {name: contract for name, contract in found.items() if not is_ours(name, contract)}
    save(HOSTS / f"{version}.json", theirs)


if __name__ == "__main__":
    main()
