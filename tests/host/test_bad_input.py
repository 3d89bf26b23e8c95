"""Bad input gets a clear error at the node that caused it; the same server then runs the next graph."""

import pytest

from tests.host.graphs import changed, node_of
from tests.host.pictures import explained

# The file that is chosen -> words that the message must have beside the file's name.
TRANSFORMERS = {
    "text": "is a web page, not a model",
    "pickle": "pickle",
    "empty": "is empty: the download failed",
    "truncated": "truncated",
    "missing_keys": "lacks",
    "wrong_shape": "shape",
    "lora": "LoRA",
    "other_family": "Stable Diffusion",
}


def failure(server, graph: dict, class_type: str) -> str:
    """Run a graph that must fail at one node; return what it says."""
    result = server.run(graph)
    assert not result.ok
    assert len(result.errors) == 1, result.errors
    assert result.errors[0]["class_type"] == class_type
    return result.errors[0]["message"]


@pytest.fixture
def then_a_good_run(server, turbo):
    """The same server runs the next graph; with a new seed, so that it is not only remembered."""
    yield
    seed = len(server.log)  # grows with every run
    result = server.run(changed(turbo, ZImageTurboSampler__seed=seed, ZImageTurboSampler__steps=2))
    assert result.ok, explained(result)


pytestmark = pytest.mark.usefixtures("then_a_good_run")


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_bad_transformer_file(server, turbo, name):
    file = f"{name}.safetensors"
    message = failure(server, changed(turbo, ZImageLoader__transformer=file), "ZImageLoader")
    assert file in message
    assert TRANSFORMERS[name].lower() in message.lower()


def test_bad_vae_file(server, turbo):
    message = failure(server, changed(turbo, ZImageLoader__vae="text.safetensors"), "ZImageLoader")
    assert "text.safetensors" in message


def test_text_encoder_of_another_width(server, turbo):
    """Both widths and the way out are in the message; it may come at the loader or where the two meet."""
    result = server.run(changed(turbo, ZImageLoader__text_encoder="wide_2304.safetensors"))
    assert not result.ok and len(result.errors) == 1
    assert result.errors[0]["class_type"] in ("ZImageLoader", "ZImageTurboSampler")
    assert "2304" in result.errors[0]["message"]
    assert "256" in result.errors[0]["message"]


@pytest.mark.parametrize("name", ["nowhere.safetensors", "", "built-in: huge"])
def test_unknown_name(server, turbo, name):
    message = failure(server, changed(turbo, ZImageLoader__transformer=name), "ZImageLoader")
    assert name in message


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
@pytest.mark.parametrize("path", ["../../../../../etc/passwd", "/etc/passwd", "../loras/split.safetensors"])
def test_path_outside_the_model_folders(server, turbo, part, path):
    message = failure(server, changed(turbo, **{f"ZImageLoader__{part}": path}), "ZImageLoader")
    assert "root:" not in message, "the content of a file outside the folders came back"
    assert "safetensors file" not in message, "the file was opened"


def test_weights_with_nan(server, turbo):
    """Not a black picture without a word: the message says what is wrong and names a cause."""
    result = server.run(changed(turbo, ZImageLoader__transformer="nan.safetensors"))
    assert not result.ok
    assert "nan" in result.errors[0]["message"].lower()
    assert result.errors[0]["class_type"] in ("ZImageLoader", "ZImageTurboSampler")


@pytest.mark.parametrize(
    "inputs",
    [
        {"ZImageLatent__size": "custom", "ZImageLatent__width": -16},
        {"ZImageLatent__size": "custom", "ZImageLatent__width": 10**9},
        {"ZImageLatent__size": "7x7 (small)"},
        {"ZImageLatent__batch_size": 0},
    ],
)
def test_bad_size(server, turbo, inputs):
    assert failure(server, changed(turbo, **inputs), "ZImageLatent")


@pytest.mark.parametrize(
    "inputs",
    [
        {"ZImageTurboSampler__steps": 0},
        {"ZImageTurboSampler__steps": "many"},
        {"ZImageTurboSampler__denoise": 1.5},
        {"ZImageTurboSampler__shift": -1.0},
    ],
)
def test_bad_sampler_number(server, turbo, inputs):
    assert failure(server, changed(turbo, **inputs), "ZImageTurboSampler")


def test_latent_with_the_wrong_channels(server, base, turbo):
    """A latent of a 4-channel model, with content, from a file."""
    import torch
    from safetensors.torch import save_file

    latent = {"latent_tensor": torch.randn(1, 4, 16, 16), "latent_format_version_0": torch.tensor([])}
    save_file(latent, base / "input" / "four.latent")
    graph = changed(turbo)
    graph["101"] = {"class_type": "LoadLatent", "inputs": {"latent": "four.latent"}}
    graph[node_of(graph, "ZImageTurboSampler")]["inputs"]["latent_image"] = ["101", 0]
    message = failure(server, graph, "ZImageTurboSampler")
    assert "16" in message and "4" in message


def test_prompt_of_ten_thousand_words(server, turbo):
    """Long is not wrong: it runs, and the node says how many tokens it is. Few steps, for it is slow."""
    graph = changed(turbo, ZImageTextEncode__text="apple tree " * 5000, ZImageTurboSampler__steps=1)
    result = server.run(graph)
    assert result.ok, explained(result)
    shown = result.outputs[node_of(graph, "ZImageTextEncode")]["text"][0]
    assert max(int(word) for word in "".join(c if c.isdigit() else " " for c in shown).split()) > 5000


@pytest.mark.parametrize("text", ["", " ", "<|endoftext|>", "a<|im_end|>b", "\x00", "\U0001f34e" * 40])
def test_odd_prompts_run(server, turbo, text):
    result = server.run(changed(turbo, ZImageTextEncode__text=text, ZImageTurboSampler__steps=2))
    assert result.ok, explained(result)
