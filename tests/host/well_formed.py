"""What the page needs of a graph in its UI form, workflow or subgraph."""

from __future__ import annotations

import itertools

from tests.host.graphs import NOTES

TITLE = 30  # pixels above a node's position
OFFICIAL = "https://huggingface.co/Comfy-Org/{repository}/resolve/main/split_files/{directory}/{name}"
CONTROL = "https://huggingface.co/alibaba-pai/{repository}/resolve/main/{name}"  # its authors' own
LOADERS = {  # node type -> how many files a full-size model needs there
    "ZImageLoader": 3,
    "ZImageModelLoader": 1,
    "ZImageTextEncoderLoader": 1,
    "ZImageVAELoader": 1,
    "UNETLoader": 1,
    "CLIPLoader": 1,
    "VAELoader": 1,
    "ZImageControlLoader": 1,
}


def check_nodes(nodes: list[dict], contracts: dict) -> None:
    """Every node names the pack that provides it, and has the sockets and widgets that its contract has."""
    for node in nodes:
        pack = "zimage" if node["type"].startswith("ZImage") else "comfy-core"
        assert node["properties"]["cnr_id"] == pack
        if node["type"] in NOTES:
            continue
        outputs = [output["name"] for output in node["outputs"]]
        assert outputs == contracts[node["type"]]["output_name"][: len(outputs)]  # hosts append outputs
        order = contracts[node["type"]]["input_order"]
        declared = order.get("required", []) + order.get("optional", [])
        assert {socket["name"] for socket in node["inputs"]} <= set(declared)


def check_links(nodes: dict[int, dict], links: list[list]) -> None:
    """Links join sockets that exist and agree, and no socket names a link that does not exist."""
    ends = set()
    for link, source, out_slot, target, in_slot, kind in links:
        output, socket = nodes[source]["outputs"][out_slot], nodes[target]["inputs"][in_slot]
        assert link in output["links"] and socket["link"] == link
        assert output["type"] == socket["type"] == kind
        ends |= {(source, "out", link), (target, "in", link)}
    for number, node in nodes.items():
        for output in node["outputs"]:
            assert all((number, "out", link) in ends for link in output["links"] or [])
        for socket in node["inputs"]:
            assert socket["link"] is None or (number, "in", socket["link"]) in ends


def check_no_overlap(nodes: list[dict]) -> None:
    for a, b in itertools.combinations(nodes, 2):
        beside = any(a["pos"][0] + a["size"][0] <= b["pos"][0] for a, b in ((a, b), (b, a)))
        above = any(a["pos"][1] + a["size"][1] <= b["pos"][1] - TITLE for a, b in ((a, b), (b, a)))
        assert beside or above, f"nodes {a['id']} and {b['id']} overlap"


def check_downloads(nodes: list[dict]) -> None:
    """Loaders say where the full-size files are.

    The page offers those that are chosen and absent: with nano chosen, none.
    """
    for node in nodes:
        models = node["properties"].get("models", [])
        assert len(models) == LOADERS.get(node["type"], 0)
        for model in models:
            assert set(model) == {"name", "url", "directory"}
            place = CONTROL if node["type"] == "ZImageControlLoader" else OFFICIAL
            assert model["url"] == place.format(repository=model["url"].split("/")[4], **model)
        if node["type"].startswith("ZImage"):
            named = {model["name"] for model in models}
            assert named & set(node["widgets_values"]) in (set(), named), "all of nano, or all of full size"
