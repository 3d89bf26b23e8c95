"""Streaming weights (--lowvram, --novram) changes where they lie, never the picture."""

import pytest
import torch

from tests.host.graphs import api_form, changed
from tests.host.pictures import difference, picture
from tests.host.server import ComfyServer
from tests.host.test_host_nodes import with_model_node

STREAMING_PACK = "stream_on_cpu.py"


@pytest.mark.parametrize("option", ["--lowvram", "--novram"])
def test_streamed_weights_make_the_same_picture(server, host_path, base, tmp_path, monkeypatch, option):
    turbo = api_form("01 Text to image (nano demo)")
    lora = {"lora_name": "fused.safetensors", "strength_model": 0.7}
    on_file = changed(turbo, ZImageLoader__transformer="good.safetensors", ZImageLoader__weight_dtype="fp32")
    enhanced = changed(
        api_form("02 Prompt enhancer (nano demo)"),
        ZImagePromptEnhancer__max_tokens=24,
        ZImageTurboSampler__steps=2,
    )
    graphs = {
        "nano": turbo,
        "enhanced prompt": enhanced,
        "file with a LoRA": with_model_node(on_file, "LoraLoaderModelOnly", **lora),
    }
    expected = {name: picture(server, server.run(graph)) for name, graph in graphs.items()}

    (tmp_path / "models").symlink_to(base / "models", target_is_directory=True)
    if torch.cuda.is_available():
        options, packs = (option,), ()
    else:
        options, packs = (), (STREAMING_PACK,)
        monkeypatch.setenv("STREAM_ON_CPU", option)
    with ComfyServer(host_path, tmp_path, "--disable-api-nodes", *options, packs=packs) as streaming:
        for name, graph in graphs.items():
            assert difference(expected[name], picture(streaming, streaming.run(graph))) == 0, name
        assert "loaded partially" in streaming.log, "nothing was streamed: the test proves nothing"
