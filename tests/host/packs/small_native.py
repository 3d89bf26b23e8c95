"""A test-only ComfyUI extension: the host's own Z-Image at any width.

The host's loader knows Z-Image by its width of 3840; its classes run at others. With this file in
custom_nodes the node NativeZImage loads a small one, so that many settings can be tried in a short time.
"""

import comfy.model_management as management
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import folder_paths
import torch


def patcher(state, operations=None, dtype=torch.float32):
    """A MODEL around the host's network; operations and dtype as its loaders would choose them for a file."""
    state = {key.removeprefix("model.diffusion_model."): value for key, value in state.items()}
    dim, head = state["x_embedder.bias"].shape[0], 128
    sizes = {"dim": dim, "n_heads": dim // head, "n_kv_heads": dim // head, "n_layers": 2}
    sizes |= {"cap_feat_dim": state["cap_embedder.0.weight"].shape[0], "axes_dims": [32, 48, 48]}
    if "siglip_embedder.0.weight" in state:
        sizes["siglip_feat_dim"] = state["siglip_embedder.0.weight"].shape[0]
    config = comfy.supported_models.ZImage(
        {
            **{"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "qk_norm": True, **sizes},
            **{"axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3},
            **{"z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32},
        }
    )
    config.custom_operations = operations
    config.set_inference_dtype(dtype, None if dtype == torch.float32 else torch.float32)
    model = config.get_model(state, "")
    model.load_model_weights(state, "")
    device = management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, device, management.unet_offload_device())


def load(name, disable_dynamic=False):
    made = patcher(comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("diffusion_models", name)))
    made.cached_patcher_init = (load, (name,))
    return made


class NativeZImage:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": (folder_paths.get_filename_list("diffusion_models"),)}}

    def load(self, name):
        return (load(name),)


NODE_CLASS_MAPPINGS = {"NativeZImage": NativeZImage}
