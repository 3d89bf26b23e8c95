"""The blueprints of this extension are in the node library, and can be put into a graph."""

from tests.host import graphs


def test_blueprints_can_be_taken_from_the_node_library(open_page):
    assert graphs.BLUEPRINT_NAMES, "subgraphs/ has no blueprint"
    comfy = open_page()
    comfy.clear()
    comfy.sidebar("Node Library")
    for name in graphs.BLUEPRINT_NAMES:
        comfy.page.locator("input[placeholder^='Search']:visible").first.fill(name)
        comfy.page.get_by_text(name, exact=True).click()
        # Older pages have put the node down by now, newer ones wait for a place.
        comfy.page.locator("#graph-canvas").click(position={"x": 900, "y": 500})
        comfy.page.wait_for_function(
            "name => app.graph.nodes.some(node => node.title == name && node.isSubgraphNode())", arg=name
        )
        inner = comfy.page.evaluate(
            "name => app.graph.nodes.find(node => node.title == name).subgraph.nodes"
            ".map(node => [node.type, node.type in LiteGraph.registered_node_types])",
            name,
        )
        assert inner and [kind for kind, known in inner if not known] == []
        comfy.clear()
