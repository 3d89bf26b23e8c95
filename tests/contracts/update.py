"""python -m tests.contracts.update: record the nodes as they are, in nodes.json and locales/en/nodeDefs.json.

Whoever installs from git has every commit, so a node counts as released once it is recorded. From then on its
inputs keep their names, types, defaults and order; new ones are optional and come last. A change that breaks
this is refused and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from dev import CACHE, HOST_NAME
from tests.contracts.object_info import NODES, broken, inputs, load, of_server, save
from tests.host.server import PACK_ROOT, ComfyServer

ENGLISH = PACK_ROOT / "locales" / "en" / "nodeDefs.json"


def is_ours(_: str, contract: dict) -> bool:
    return contract["category"].startswith("Z-Image/")


def texts(contract: dict, fixed: dict, known: dict) -> dict:
    """The locale entry of one node: every text of its schema. Its extract tells which options are fixed.

    known: the entry so far. A schema has no labels of options: those that were written there stay.
    """
    entry: dict = {"display_name": contract["display_name"], "description": contract["description"]}
    entry["inputs"] = {}
    for name, (_, settings, _optional) in inputs(contract).items():
        said = {"name": settings.get("display_name") or name, "tooltip": settings.get("tooltip")}
        options = inputs(fixed)[name].settings.get("options")
        if options:
            labels = known.get("inputs", {}).get(name, {}).get("options", {})
            said["options"] = {option: labels.get(option, option) for option in options}
        entry["inputs"][name] = said
    told = zip(contract["output_name"], contract["output_tooltips"], strict=True)
    entry["outputs"] = {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(told)}
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default=os.environ.get("COMFYUI_PATH", CACHE / HOST_NAME), help="a ComfyUI")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        with ComfyServer(Path(options.host), Path(base), "--disable-api-nodes") as server:
            contracts = of_server(server, is_ours)
            known = json.loads(ENGLISH.read_text(encoding="utf-8"))
            english = {
                name: texts(server.object_info(name), contracts[name], known.get(name, {}))
                for name in contracts
            }
    if complaints := list(broken(load(NODES), contracts)):
        sys.exit("Not recorded, because it would break graphs that people have:\n" + "\n".join(complaints))
    save(NODES, contracts)
    ENGLISH.write_text(json.dumps(english, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
