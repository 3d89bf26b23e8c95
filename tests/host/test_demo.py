"""What `python dev.py demo` shows while its graph runs."""

import re

import dev
from tests.host.graphs import changed


def test_each_node_once_and_the_sampler_with_its_steps(server, turbo, capsys):
    graph = changed(turbo, ZImageTurboSampler__seed=301, ZImageLoader__weight_dtype="bf16")
    assert server.run(graph, on_event=dev.Progress(graph).show).ok
    lines = capsys.readouterr().out.splitlines()
    counts = [tuple(map(int, re.match(r"\[(\d+)/(\d+)\]", line).groups())) for line in lines]
    assert counts == sorted(counts) and counts[-1] == (len(graph) + 1, len(graph) + 1)
    kinds = [line.split()[-1] for line in lines if " step " not in line]
    assert sorted(kinds) == sorted(node["class_type"] for node in graph.values())
    assert any("ZImageTurboSampler step" in line for line in lines)
