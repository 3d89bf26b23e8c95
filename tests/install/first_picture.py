"""What a person does after installing: start ComfyUI, open the template, run it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from tests.host import graphs
from tests.host.pictures import picture
from tests.host.server import ComfyServer

TEMPLATE = "01 Text to image (nano demo)"


def assert_first_picture(host: Path, pack: Path, *options: str) -> None:
    """`pack` is the installed folder in custom_nodes; nothing but the harness comes from this checkout."""
    assert pack.parent == host / "custom_nodes" and pack.is_dir() and not pack.is_symlink()
    with ComfyServer(
        host, host, "--disable-api-nodes", *options, packs=(pack.name,), checkout=False
    ) as server:
        assert server.object_info("ZImageLoader"), f"the nodes are missing:\n{server.log_tail()}"
        template = server.get_json(f"/api/workflow_templates/{pack.name}/{quote(TEMPLATE)}.json")
        made = picture(server, server.run(graphs.to_api(template, server.object_info()), template))
    assert made.shape == (128, 128, 3)
    assert made.std() > 10, "one colour is no picture"
