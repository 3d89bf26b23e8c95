"""What `python dev.py demo` shows while its graph runs."""

import re

import dev
from tests.host.graphs import changed


def test_each_node_once_and_the_sampler_with_its_steps(server, turbo, capsys):
    graph = changed(turbo, ZImageTurboSampler__seed=301, ZImageLoader__weight_dtype="bf16")
    result = server.run(graph, on_event=dev.Progress(graph).show)
    assert result.ok
    lines = capsys.readouterr().out.splitlines()
    shown = [line for line in lines if " step " not in line]
    run = [node for node in graph if node not in result.cached]  # the others are cached
    assert sorted(line.split()[-1] for line in shown) == sorted(graph[node]["class_type"] for node in run)
    counts = [re.match(r"\[(\d+)/(\d+)\]", line).groups() for line in shown]
    assert counts == [(str(n), str(len(graph) + 1)) for n in range(2, len(run) + 2)]
    assert any("ZImageTurboSampler step" in line for line in lines)
