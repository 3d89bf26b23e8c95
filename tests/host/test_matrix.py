"""What people put on a Z-Image MODEL has the effect on ours that it has on the host's own.

Every row runs on a real server, on the host's model, on ours and on the host's under Accelerate, from the
same file. They differ by rounding only, so the latents are equal to 1e-4 of their norm.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.core.random_models import relative
from tests.host import matrix
from tests.host.matrix import LONG, SHORT, Graph, Link
from tests.host.server import ComfyServer

CLOSE = 1e-4  # relative L2 after whole runs; one forward is held to 1e-5 elsewhere
EFFECT = 1e-2  # a row that changes less than this would prove nothing


def host_version() -> tuple[int, ...]:
    text = (Path(os.environ["COMFYUI_PATH"]) / "comfyui_version.py").read_text()
    return tuple(map(int, re.search(r'"([\d.]+)"', text)[1].split(".")))


HOST = host_version() if "COMFYUI_PATH" in os.environ else (0, 0, 0)


@pytest.fixture(scope="module")
def wide(host_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("matrix")
    matrix.write_files(base / "models", control="ZImageFunControlnet" in RUN)
    two = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"} if matrix.WIDE else None
    with ComfyServer(host_path, base, "--disable-api-nodes", packs=(matrix.PACK,), environment=two) as server:
        yield server
    for file in base.rglob("*.safetensors"):  # may be gigabytes
        file.unlink()


@pytest.fixture(scope="module")
def plain(wide: ComfyServer) -> torch.Tensor:
    """What the host's own model makes when nothing is put on it."""
    return matrix.run(wide, Graph.ksampler, sides=("native",))[0]["native"]


def model_node(class_type: str, /, **inputs) -> Callable[[Graph, Link], Link]:
    """A row: one MODEL -> MODEL node before a KSampler."""
    return lambda g, model: g.ksampler(g.add(class_type, model=model, **inputs))


def guided(g: Graph, model: Link, negative: str = LONG, **changed) -> Link:
    return g.ksampler(model, cfg=3.0, negative=g.prompt(negative), **changed)


def custom_advanced(g: Graph, model: Link) -> Link:
    positive, negative = g.prompt(SHORT), g.prompt(LONG)
    return g.add(
        "SamplerCustomAdvanced",
        noise=g.add("RandomNoise", noise_seed=6),
        guider=g.add("CFGGuider", model=model, positive=positive, negative=negative, cfg=2.5),
        sampler=g.add("KSamplerSelect", sampler_name="dpmpp_2m"),
        sigmas=g.add("BasicScheduler", model=model, scheduler="beta", steps=3, denoise=1.0),
        latent_image=g.empty(),
    )


def lora(name: str, strength: float = 1.0) -> Callable[[Graph, Link], Link]:
    file = f"{name}.safetensors"
    return lambda g, model: g.ksampler(with_lora(g, model, file, strength))


def with_lora(g: Graph, model: Link, file: str = "comfy_fused.safetensors", strength: float = 1.0) -> Link:
    return g.add("LoraLoaderModelOnly", model=model, lora_name=file, strength_model=strength)


def lora_for_both(g: Graph, model: Link) -> Link:
    inputs = {"lora_name": "comfy_split.safetensors", "strength_model": 0.6, "strength_clip": 1.0}
    return g.ksampler(g.add("LoraLoader", model=model, clip=g.clip, **inputs))


def merged(class_type: str, **ratios: float) -> Callable[[Graph, Link], Link]:
    def row(g: Graph, model: Link) -> Link:
        other = with_lora(g, model)
        return g.ksampler(g.add(class_type, model1=model, model2=other, **ratios))

    return row


def easy_cache(g: Graph, model: Link) -> Link:
    inputs = {"reuse_threshold": 3.0, "start_percent": 0.1, "end_percent": 0.95, "verbose": True}
    return g.ksampler(g.add("EasyCache", model=model, **inputs), steps=6)


def scaled_rope(g: Graph, model: Link) -> Link:
    inputs = {"scale_x": 0.5, "shift_x": 3.0, "scale_y": 2.0, "shift_y": -1.0, "scale_t": 1.0, "shift_t": 0.0}
    return g.ksampler(g.add("ScaleROPE", model=model, **inputs))


def half_mask(g: Graph) -> Link:
    half = g.add("SolidMask", value=1.0, width=32, height=64)
    whole = g.add("SolidMask", value=0.4, width=64, height=64)
    return g.add("MaskComposite", destination=whole, source=half, x=0, y=0, operation="add")


def differential(g: Graph, model: Link) -> Link:
    picture = g.add("EmptyImage", width=64, height=64, batch_size=1, color=0xC03020)
    encoded = g.add("VAEEncode", pixels=picture, vae=g.vae)
    latent = g.add("SetLatentNoiseMask", samples=encoded, mask=half_mask(g))
    return g.ksampler(g.add("DifferentialDiffusion", model=model), steps=4, denoise=0.8, latent_image=latent)


def areas(g: Graph, model: Link) -> Link:
    at = {"width": 64, "height": 64, "x": 64, "y": 0, "strength": 0.8}
    left = g.add("ConditioningSetArea", conditioning=g.prompt(LONG), **at)
    masked = g.add(
        "ConditioningSetMask",
        conditioning=g.prompt("a blue house"),
        mask=half_mask(g),
        strength=0.7,
        set_cond_area="default",
    )
    both = g.add("ConditioningCombine", conditioning_1=left, conditioning_2=g.prompt(SHORT))
    three = g.add("ConditioningCombine", conditioning_1=both, conditioning_2=masked)
    return g.ksampler(model, positive=three, latent_image=g.empty(1, 128, 64))


def conditioning(class_type: str, to: str, of: str, encoder: str = "CLIPTextEncode", **more):
    """A row: what a node of the host makes of two prompts, guided by a third."""

    def row(g: Graph, model: Link) -> Link:
        prompts = (g.add(encoder, clip=g.clip, text=text) for text in (to, of))
        given = dict(zip(("conditioning_to", "conditioning_from"), prompts, strict=True))
        return guided(g, model, "a green pear", positive=g.add(class_type, **given, **more))

    return row


def timestep_ranges(g: Graph, model: Link) -> Link:
    early = g.add("ConditioningSetTimestepRange", conditioning=g.prompt(SHORT), start=0.0, end=0.4)
    late = g.add("ConditioningSetTimestepRange", conditioning=g.prompt(LONG), start=0.4, end=1.0)
    both = g.add("ConditioningCombine", conditioning_1=early, conditioning_2=late)
    return g.ksampler(model, positive=both, steps=4)


def hooks(g: Graph, model: Link) -> Link:
    """A LoRA that acts on one of two conditionings, at half strength from the middle on."""
    hook = g.add("CreateHookLoraModelOnly", lora_name="comfy_fused.safetensors", strength_model=1.0)
    key = g.add("CreateHookKeyframe", strength_mult=0.5, start_percent=0.5)
    hook = g.add("SetHookKeyframes", hooks=hook, hook_kf=key)
    inputs = {"cond_NEW": g.prompt(LONG), "strength": 1.0, "set_cond_area": "default", "hooks": hook}
    both = g.add(
        "ConditioningCombine",
        conditioning_1=g.add("ConditioningSetProperties", **inputs),
        conditioning_2=g.prompt(SHORT),
    )
    return g.ksampler(model, positive=both, steps=3)


def control(g: Graph, model: Link) -> Link:
    picture = g.add("EmptyImage", width=64, height=64, batch_size=1, color=0x20C030)
    patch = g.add("ModelPatchLoader", name="control.safetensors")
    inputs = {"model_patch": patch, "vae": g.vae, "strength": 0.8, "image": picture}
    return g.ksampler(g.add("ZImageFunControlnet", model=model, **inputs))


def edit(**given) -> Callable[[Graph, Link], Link]:
    """A row: the edit node on a plain picture."""

    def row(g: Graph, model: Link) -> Link:
        image = g.add("EmptyImage", width=64, height=48, batch_size=2, color=0xC03020)
        inputs = {
            "instruction": "make the apple blue",
            "route": "auto",
            "strength": 0.9,
            "steps": 2,
            "seed": 5,
        }
        inputs |= {"model": model, "clip": g.clip, "vae": g.vae, "image": image, "source_prompt": SHORT}
        return g.add("ZImageEdit", **{**inputs, **{k: v(g) if callable(v) else v for k, v in given.items()}})

    return row


SINCE = {  # rows that older hosts have no node or no key map for
    "LoRA peft split": (0, 4),
    "LoRA bare split": (0, 4),
    "LoRA bare, default adapter": (0, 4),
    "LoRA bypass": (0, 11),
    "ZImageFunControlnet": (0, 5),
}
ROWS: dict[str, Callable[[Graph, Link], Link]] = {
    "guidance, captions of two lengths": guided,
    "guidance, captions of one length": lambda g, m: guided(g, m, "a green pear"),
    "batch of 3, guided": lambda g, m: guided(g, m, latent_image=g.empty(3)),
    "odd latent": lambda g, m: g.ksampler(m, latent_image=g.empty(1, 72, 104)),
    "SamplerCustomAdvanced": custom_advanced,
    "ModelSamplingAuraFlow": model_node("ModelSamplingAuraFlow", shift=6.0),
    "LoraLoader": lora_for_both,
    "LoRA comfy fused": lora("comfy_fused"),
    "LoRA comfy split": lora("comfy_split"),
    "LoRA kohya fused": lora("kohya_fused"),
    "LoRA lycoris split": lora("lycoris_split"),
    "LoRA peft split": lora("peft_split"),
    "LoRA bare split": lora("bare_split"),
    "LoRA bare, default adapter": lora("bare_default"),
    "LoRA bypass": model_node(
        "LoraLoaderBypassModelOnly", lora_name="comfy_fused.safetensors", strength_model=1.0
    ),
    "ModelMergeSimple": merged("ModelMergeSimple", ratio=0.4),
    "ModelMergeBlocks": merged("ModelMergeBlocks", input=0.9, middle=0.5, out=0.2),
    "EasyCache": easy_cache,
    "ScaleROPE": scaled_rope,
    "DifferentialDiffusion": differential,
    "conditioning areas and masks": areas,
    "ConditioningConcat, short and long": conditioning("ConditioningConcat", SHORT, LONG),
    "ConditioningConcat, long and short": conditioning("ConditioningConcat", LONG, SHORT),
    "ConditioningConcat, our encoder": conditioning("ConditioningConcat", LONG, SHORT, "ZImageTextEncode"),
    "ConditioningAverage, of a longer one": conditioning(
        "ConditioningAverage", SHORT, LONG, conditioning_to_strength=0.4
    ),
    "ConditioningAverage, of a shorter one": conditioning(
        "ConditioningAverage", LONG, SHORT, conditioning_to_strength=0.4
    ),
    "timestep ranges": timestep_ranges,
    "hooks": hooks,
    "ZImageFunControlnet": control,
    "FlowEdit": edit(n_min=1),
    "FlowEdit, captions of two lengths": edit(source_prompt=LONG, instruction=SHORT),
    "FlowEdit, guided": edit(guidance_scale=3.0),
    "inpainting": edit(mask=half_mask),
}
RUN = [
    name for name in ROWS if SINCE.get(name, ()) <= HOST and (matrix.WIDE or name != "ZImageFunControlnet")
]


@pytest.mark.parametrize("name", RUN)
def test_row(wide: ComfyServer, plain: torch.Tensor, name: str) -> None:
    mark = len(wide.log)
    latents, _ = matrix.run(wide, ROWS[name])
    found = matrix.distances(latents)
    assert all(distance <= CLOSE for distance in found.values()), found
    if latents["native"].shape == plain.shape:
        assert relative(latents["native"], plain) > EFFECT, "the row changes nothing: it proves nothing"
    log = wide.log[mark:]
    assert "not loaded" not in log and "ERROR lora" not in log
    if name == "EasyCache":
        skipped = [int(n) for n in re.findall(r"skipped (\d+)/", log)]
        assert len(skipped) == len(latents) and min(skipped) >= 1, skipped


def test_every_sampler(wide: ComfyServer) -> None:
    names = ksampler_choices(wide, "sampler_name")
    assert len(names) > 30
    found = {}
    for name in names:
        latents, _ = matrix.run(
            wide, lambda g, model, name=name: g.ksampler(model, sampler_name=name), sides=("native", "ours")
        )
        found[name] = matrix.distances(latents)["ours"]
    assert all(distance <= CLOSE for distance in found.values()), found


def test_every_scheduler(wide: ComfyServer) -> None:
    found = {}
    for name in ksampler_choices(wide, "scheduler"):
        latents, _ = matrix.run(
            wide, lambda g, model, name=name: g.ksampler(model, scheduler=name), sides=("native", "ours")
        )
        found[name] = matrix.distances(latents)["ours"]
    assert len(found) > 5
    assert all(distance <= CLOSE for distance in found.values()), found


def ksampler_choices(server: ComfyServer, name: str) -> list[str]:
    kind, *options = server.object_info("KSampler")["input"]["required"][name]
    return kind if isinstance(kind, list) else options[0]["options"]


def test_saved_with_its_lora_and_loaded_again(wide: ComfyServer) -> None:
    """What ModelSave writes from our MODEL is the same model in the host's loader and in ours."""
    graph = Graph()
    changed = with_lora(graph, graph.model("ours"))
    graph.add("ModelSave", model=changed, filename_prefix="diffusion_models/saved")
    latent = graph.add("SaveLatent", samples=graph.ksampler(changed), filename_prefix="latents/before")
    result = wide.run(graph.nodes, timeout=900)
    before = matrix.saved(wide, result, latent)
    (file,) = (wide.base / "output" / "diffusion_models").glob("saved*.safetensors")
    try:
        latents, _ = matrix.run(wide, Graph.ksampler, file=file.name)
    finally:
        file.unlink()
    assert all(relative(latent, before) <= CLOSE for latent in latents.values())


def test_accelerate_keeps_what_was_on_the_model(wide: ComfyServer) -> None:
    """LoRA, shift and rope scale put on before it act as they do without it."""

    def row(fast: bool) -> Callable[[Graph, Link], Link]:
        def make(g: Graph, model: Link) -> Link:
            model = g.add("ModelSamplingAuraFlow", model=with_lora(g, model), shift=6.0)
            rope = {"scale_x": 0.5, "shift_x": 3.0, "scale_y": 2.0, "shift_y": -1.0}
            model = g.add("ScaleROPE", model=model, scale_t=1.0, shift_t=0.0, **rope)
            return g.ksampler(g.add("ZImageAccelerate", model=model) if fast else model)

        return make

    plain, _ = matrix.run(wide, row(False), sides=("native",))
    fast, _ = matrix.run(wide, row(True), sides=("native",))
    assert relative(fast["native"], plain["native"]) <= CLOSE


def test_accelerate_leaves_the_given_model_alone(wide: ComfyServer, plain: torch.Tensor) -> None:
    """Both in one graph, one after the other: neither marks the other."""
    latents, _ = matrix.run(wide, lambda g, m: g.ksampler(m, seed=8), sides=("accelerated", "native"))
    again, _ = matrix.run(wide, Graph.ksampler, sides=("native",))
    assert matrix.distances(latents)["accelerated"] <= CLOSE
    assert torch.equal(again["native"], plain)


if matrix.WIDE:

    @pytest.mark.parametrize("loader", ["fp8", "checkpoint"])
    def test_accelerate_under_other_loaders(wide: ComfyServer, loader: str) -> None:
        """An fp8 MODEL of UNETLoader, and the MODEL of an all-in-one checkpoint."""

        def row(fast: bool) -> Callable[[Graph, Link], Link]:
            def make(g: Graph, _: Link) -> Link:
                if loader == "fp8":
                    model = g.add("UNETLoader", unet_name=g.file, weight_dtype="fp8_e4m3fn")
                else:
                    model = g.add("CheckpointLoaderSimple", ckpt_name=matrix.CHECKPOINT)
                return g.ksampler(g.add("ZImageAccelerate", model=model) if fast else model)

            return make

        plain, _ = matrix.run(wide, row(False), sides=("native",))
        fast, _ = matrix.run(wide, row(True), sides=("native",))
        assert relative(fast["native"], plain["native"]) <= CLOSE


if HOST >= (0, 14):  # it has TextEncodeZImageOmni

    def test_reference_images_are_ignored_with_a_message(wide: ComfyServer) -> None:
        """The weights have no omni keys: the prompt counts, the images do not, and the log says so."""

        def row(with_vae: bool) -> Callable[[Graph, Link], Link]:
            def make(g: Graph, model: Link) -> Link:
                image = g.add("EmptyImage", width=64, height=64, batch_size=1, color=0x20C030)
                more = {"vae": g.vae} if with_vae else {}
                inputs = {
                    "clip": g.clip,
                    "prompt": SHORT,
                    "image1": image,
                    "auto_resize_images": False,
                    **more,
                }
                return g.ksampler(model, positive=g.add("TextEncodeZImageOmni", **inputs))

            return make

        mark = len(wide.log)
        with_images, _ = matrix.run(wide, row(True), sides=("ours", "accelerated"))
        assert "no omni keys" in wide.log[mark:]
        without, _ = matrix.run(wide, row(False), sides=("ours", "accelerated"))
        for side, latent in with_images.items():
            assert torch.equal(latent, without[side]), side
