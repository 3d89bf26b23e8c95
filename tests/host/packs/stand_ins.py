"""A test-only ComfyUI extension: the node StandIn gives small things that nodes want beside a MODEL.

What a node needs of another family of models (its patches, its audio) is made here of random weights as small
as they can be, from the host's own classes where it has them.
"""

from types import SimpleNamespace

import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import torch

DIM = 256  # of the small Z-Image


class Anything(str):
    """A type that every input takes."""

    def __ne__(self, other):
        return False


def patcher(model):
    """Random weights, from one seed, in the host's patcher."""
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return comfy.model_patcher.ModelPatcher(
        model, management.get_torch_device(), management.unet_offload_device()
    )


def qwen_control():
    from comfy_extras.nodes_model_patch import QwenImageBlockWiseControlNet

    return patcher(QwenImageBlockWiseControlNet(2, dim=DIM, operations=comfy.ops.manual_cast))


def z_image_control():
    from comfy.ldm.lumina.controlnet import ZImage_Control

    sizes = {"dim": DIM, "n_heads": 2, "n_kv_heads": 2, "n_control_layers": 3}
    return patcher(
        ZImage_Control(**sizes, additional_in_dim=17, refiner_control=True, operations=comfy.ops.manual_cast)
    )


def style_projector():
    from comfy_extras.nodes_model_patch import SigLIPMultiFeatProjModel

    return patcher(SigLIPMultiFeatProjModel(4, 2, 8, DIM, operations=comfy.ops.manual_cast))


def lllite():
    from comfy.ldm.anima.lllite import AnimaLLLite, AnimaLLLiteConditioning

    name, wide = "lllite_dit_blocks_0_self_attn_q_proj", 8
    reader = AnimaLLLiteConditioning(3, 16, wide, 0, (), operations=torch.nn)
    state = {f"lllite_conditioning1.{key}": value for key, value in reader.state_dict().items()}
    state[f"{name}.down.weight"] = torch.zeros(wide, DIM)
    state[f"{name}.cond_to_film.weight"] = torch.zeros(2 * wide, wide)
    return patcher(AnimaLLLite(state, {}, operations=comfy.ops.manual_cast))


def camera_control():
    from comfy.ldm.wan.uni3c import WanUni3CControlnet

    sizes = {"in_channels": 36, "conv_out_dim": 64, "dim": 64, "ffn_dim": 64, "num_layers": 1}
    sizes |= {"time_embed_dim": DIM, "out_proj_dim": DIM, "add_channels": 7, "mid_channels": 16}
    return patcher(WanUni3CControlnet(**sizes, operations=comfy.ops.manual_cast))


def upscaler():
    modules = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    return SimpleNamespace(model=SimpleNamespace(project_modules=modules, control_model=None))


def talking():
    from comfy_extras.nodes_model_patch import MultiTalkModelPatch

    sizes = {"in_dim": DIM, "intermediate_dim": 8, "out_dim": 8, "context_tokens": 2, "num_layers": 1}
    return patcher(MultiTalkModelPatch(**sizes, operations=comfy.ops.manual_cast))


def lora():
    return comfy.utils.load_torch_file(folder_paths.get_full_path("loras", "comfy_fused.safetensors"))


def video_vae():
    """Pictures [1, H, W, 3] -> latents [1, 16, 1, H / 8, W / 8], and the other way round."""
    return SimpleNamespace(
        encode=lambda pixels: pixels[:, ::8, ::8, :1].permute(0, 3, 1, 2)[:, :, None].repeat(1, 16, 1, 1, 1),
        spacial_compression_encode=lambda: 8,
        temporal_compression_decode=lambda: 4,
    )


def audio_vae():
    return SimpleNamespace(audio_sample_rate=16000, encode=lambda sound: torch.zeros(1, 8, 4, 2))


MAKERS = {
    "qwen control": qwen_control,
    "z-image control": z_image_control,
    "style projector": style_projector,
    "lllite": lllite,
    "camera control": camera_control,
    "upscaler": upscaler,
    "talking": talking,
    "lora": lora,
    "audio vae": audio_vae,
    "video vae": video_vae,
    "sound": lambda: {"waveform": torch.zeros(1, 2, 1600), "sample_rate": 16000},
    "encoded sound": lambda: {"encoded_audio_all_layers": [torch.zeros(1, 50, 768) for _ in range(13)]},
    "style": lambda: SimpleNamespace(
        all_hidden_states=torch.ones(1, 30, 4, 8), penultimate_hidden_states=torch.ones(1, 4, 8)
    ),
}


class StandIn:
    RETURN_TYPES = (Anything("*"),)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": (list(MAKERS),)}}

    def make(self, kind):
        return (MAKERS[kind](),)


class Seeded:
    """Gives the MODEL on; random numbers start anew."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "seed"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def seed(self, model):
        torch.manual_seed(4)
        return (model,)


class TwoLatents:
    """A list of two, as what people train on comes."""

    RETURN_TYPES = ("LATENT",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        both = torch.randn(2, 1, 16, 8, 8, generator=torch.Generator().manual_seed(4))
        return ([{"samples": samples} for samples in both],)


NODE_CLASS_MAPPINGS = {"StandIn": StandIn, "Seeded": Seeded, "TwoLatents": TwoLatents}
