"""ComfyUI's own nodes work on what our loader returns: it is an ordinary MODEL, CLIP and VAE."""

import copy

import pytest
from PIL import Image

from tests.host.graphs import api_form, changed, node_of
from tests.host.pictures import difference, explained, picture

ROUNDING = 1.5  # grey levels: the same picture but for rounding
CLEARLY = 2.0  # a different picture


def with_model_node(graph: dict, class_type: str, **inputs) -> dict:
    """Put a MODEL -> MODEL node between the loader and whoever takes its MODEL."""
    graph, loader = copy.deepcopy(graph), node_of(graph, "ZImageLoader")
    for node in graph.values():
        for name, source in node["inputs"].items():
            if source == [loader, 0]:
                node["inputs"][name] = ["100", 0]
    graph["100"] = {"class_type": class_type, "inputs": {"model": [loader, 0], **inputs}}
    return graph


def test_ksampler_makes_the_turbo_samplers_picture(server, turbo, host_ksampler):
    """Euler on the simple schedule at shift 3 is the official grid; same seed, same noise."""
    text = {"ZImageTextEncode__text": "a red apple", "CLIPTextEncode__text": "a red apple"}
    ours = picture(server, server.run(changed(turbo, ZImageTurboSampler__seed=11, **text)))
    theirs = picture(server, server.run(changed(host_ksampler, KSampler__seed=11, **text)))
    assert difference(ours, theirs) <= ROUNDING


@pytest.mark.parametrize("names", [("res_multistep", "simple"), ("dpmpp_2m", "beta"), ("lcm", "normal")])
def test_other_samplers_and_schedulers(server, host_ksampler, names):
    sampler, scheduler = names
    graph = changed(host_ksampler, KSampler__sampler_name=sampler, KSampler__scheduler=scheduler)
    result = server.run(changed(graph, KSampler__steps=4))
    assert result.ok, explained(result)


def test_guidance_with_a_negative_prompt_of_another_length(server, host_ksampler):
    graph = changed(host_ksampler, KSampler__cfg=3.0)
    loader, sampler = node_of(graph, "ZImageLoader"), node_of(graph, "KSampler")
    plain = picture(server, server.run(graph))
    text = "blurry, dark, and a good many other things that nobody would like to see in a picture " * 3
    graph["101"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": [loader, 1], "text": text}}
    graph[sampler]["inputs"]["negative"] = ["101", 0]
    assert difference(plain, picture(server, server.run(graph))) > 0


def test_image_to_image(server, base, host_ksampler):
    Image.new("RGB", (128, 128), (200, 40, 40)).save(base / "input" / "red.png")
    graph = changed(host_ksampler, KSampler__denoise=0.3)
    loader, sampler = node_of(graph, "ZImageLoader"), node_of(graph, "KSampler")
    graph["101"] = {"class_type": "LoadImage", "inputs": {"image": "red.png"}}
    graph["102"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["101", 0], "vae": [loader, 2]}}
    graph[sampler]["inputs"]["latent_image"] = ["102", 0]
    result = picture(server, server.run(graph))
    red, _, blue = result.reshape(-1, 3).mean(axis=0)
    assert red > blue + 40, "little of the red picture is left at denoise 0.3"


def test_image_to_image_with_our_sampler(server, base, turbo):
    Image.new("RGB", (128, 128), (200, 40, 40)).save(base / "input" / "red.png")
    graph = changed(turbo, ZImageTurboSampler__denoise=0.3)
    loader, sampler = node_of(graph, "ZImageLoader"), node_of(graph, "ZImageTurboSampler")
    graph["101"] = {"class_type": "LoadImage", "inputs": {"image": "red.png"}}
    graph["102"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["101", 0], "vae": [loader, 2]}}
    graph[sampler]["inputs"]["latent_image"] = ["102", 0]
    red, _, blue = picture(server, server.run(graph)).reshape(-1, 3).mean(axis=0)
    assert red > blue + 40


def test_model_sampling_node_sets_the_shift(server, host_ksampler):
    plain = picture(server, server.run(host_ksampler))
    same = picture(server, server.run(with_model_node(host_ksampler, "ModelSamplingAuraFlow", shift=3.0)))
    other = picture(server, server.run(with_model_node(host_ksampler, "ModelSamplingAuraFlow", shift=7.0)))
    assert difference(plain, same) == 0
    assert difference(plain, other) > 0


def test_our_sigmas_drive_a_custom_sampler(server, turbo):
    """ZImageSigmas -> SamplerCustomAdvanced makes what ZImageTurboSampler makes."""
    ours = picture(server, server.run(changed(turbo, ZImageTurboSampler__seed=12)))
    graph = copy.deepcopy(turbo)
    sampler = node_of(graph, "ZImageTurboSampler")
    wires = graph[sampler]["inputs"]
    guider = {"model": wires["model"], "conditioning": wires["conditioning"]}
    graph["101"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": 12}}
    graph["102"] = {"class_type": "BasicGuider", "inputs": guider}
    graph["103"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    graph["104"] = {"class_type": "ZImageSigmas", "inputs": {"steps": 8, "shift": 3.0, "denoise": 1.0}}
    graph[sampler] = {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {
            "noise": ["101", 0],
            "guider": ["102", 0],
            "sampler": ["103", 0],
            "sigmas": ["104", 0],
            "latent_image": wires["latent_image"],
        },
    }
    assert difference(ours, picture(server, server.run(graph))) <= ROUNDING


FILES = [
    ("good", "fp32"),
    ("good_bf16", "auto"),
    ("good", "fp8_e4m3fn"),
    ("good_scaled_fp8", "auto"),
    ("good_comfy_quant", "auto"),
]


@pytest.mark.parametrize("file, dtype", FILES)
def test_loras_of_both_spellings_act_alike(server, turbo, file, dtype):
    graph = changed(turbo, ZImageLoader__transformer=f"{file}.safetensors", ZImageLoader__weight_dtype=dtype)

    def made(lora, strength):
        node = {"lora_name": f"{lora}.safetensors", "strength_model": strength}
        mark = len(server.log)
        result = picture(server, server.run(with_model_node(graph, "LoraLoaderModelOnly", **node)))
        assert "not loaded" not in server.log[mark:], "the host left LoRA keys unused"
        return result

    plain = picture(server, server.run(graph))
    split, fused = made("split", 1.0), made("fused", 1.0)
    assert difference(plain, split) > CLEARLY
    assert difference(split, fused) <= (ROUNDING if dtype == "fp32" else 0.5 * difference(plain, split))
    # Off again: the patches leave nothing behind in the weights.
    assert difference(plain, made("split", 0.0)) == 0
    assert difference(plain, picture(server, server.run(graph))) == 0


def test_a_lora_named_in_the_prompt_acts_as_by_the_hosts_loader(server):
    """The example that ships, and an error where the name is not right."""
    graph = api_form("07 LoRA (nano demo)")
    theirs = picture(server, server.run(graph))
    node = graph[node_of(graph, "LoraLoaderModelOnly")]
    node["class_type"] = "ZImageLoraLoader"
    encode = graph[node_of(graph, "ZImageTextEncode")]["inputs"]
    prompt = f"{encode['text']} <lora:nano_greyscale_lora>"
    node["inputs"] = {"model": node["inputs"]["model"], "prompt": prompt}
    node["inputs"] |= {f"lora_{n}": "none" for n in range(1, 5)} | {f"strength_{n}": 1.0 for n in range(1, 5)}
    encode["text"] = [node_of(graph, "ZImageLoraLoader"), 3]
    assert difference(theirs, picture(server, server.run(graph))) == 0
    node["inputs"]["prompt"] = prompt.replace("nano_greyscale", "gray")
    result = server.run(graph)
    assert "no LoRA named 'gray_lora'" in explained(result)
    assert "The nearest are: nano_greyscale_lora.safetensors" in explained(result)
