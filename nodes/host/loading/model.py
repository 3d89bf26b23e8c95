"""A transformer file -> the host's MODEL."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as management
import comfy.supported_models
import comfy.utils
import torch

from ....zimage_core.config import S3DiTConfig
from ....zimage_core.model.memo import StepMemo
from ....zimage_core.weights import Checkpoint, WeightsError, read_transformer
from ..built_in import NANO, nano_settings
from ..running.before_run import look_before_runs
from ..running.conds import caption_conds
from ..running.finite import check_results
from ..running.packed import follow_loras, merged, pack
from ..running.references import CELLS, PATCH_AREA, reference_conds
from ..running.regions import REGIONS
from ..running.s3dit import HostS3DiT, prefers
from .mapped import mapped
from .patcher import patched
from .quantised import Placed, quantised_state, saveable

DTYPES = {
    "auto": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}


# The host's rule for one forward: latent cells x bytes of the type x this, in percent of a MiB. Our peak is
# 86 to 91 kB a token in bfloat16 (bench memory); 1.25 leaves room for what libraries and allocator add.
MEMORY_FACTOR = 1.25
CONFIG_FIELDS = {field.name for field in dataclasses.fields(S3DiTConfig)}
READ_BY_NODES = {  # the host's name for a size -> ours; RenormCFG and others read it from the network
    "in_channels": "in_channels",
    "out_channels": "in_channels",
    "patch_size": "patch_size",
    "dim": "dim",
    "n_heads": "n_heads",
    "axes_dims": "axes_dims",
    "time_scale": "t_scale",
    "pad_tokens_multiple": "pad_multiple",
}


def build(device: Any = None, dtype: Any = None, operations: Any = None, **unet_config: Any) -> HostS3DiT:
    """What BaseModel calls with its unet_config; fields that only the host reads are left out."""
    config = S3DiTConfig(**{k: v for k, v in unet_config.items() if k in CONFIG_FIELDS})
    network = HostS3DiT(config, device=device, dtype=dtype, operations=operations)
    for name, ours in READ_BY_NODES.items():
        setattr(network, name, getattr(config, ours))
    return network


class Model(comfy.model_base.Lumina2):
    """The host's Lumina2 family with our network: LoRA maps and other nodes take it for what it is."""

    def __init__(self, model_config: Any, device: Any = None) -> None:
        comfy.model_base.BaseModel.__init__(
            self, model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=build
        )
        self.runs = StepMemo()
        self.memory_usage_factor = MEMORY_FACTOR
        self.memory_usage_factor_conds = ("c_crossattn", *CELLS)
        self.memory_usage_shape_process = {"c_crossattn": lambda shape: [shape[0], 1, shape[1] * PATCH_AREA]}

    def extra_conds_shapes(self, **kwargs: Any) -> dict:
        caption = kwargs.get("cross_attn")
        shapes = {} if caption is None else {"c_crossattn": list(caption.shape)}
        if regions := kwargs.get(REGIONS):
            shapes["c_crossattn"][1] += sum(region.captions.features.shape[1] for region in regions)
        if self.model_config.unet_config.get("siglip_feat_dim") is not None:
            shapes |= {name: cond.size() for name, cond in reference_conds(kwargs).items()}
        return shapes

    def extra_conds(self, **kwargs: Any) -> dict:
        multiple = self.model_config.unet_config["pad_multiple"]
        return caption_conds(super().extra_conds(**kwargs), kwargs, self, multiple, self.runs)


class Config(comfy.supported_models.ZImage):
    """The host's Z-Image configuration for any size of it."""

    network: Any = None  # a weak reference to one with packed layers

    def get_model(self, state_dict: dict, prefix: str = "", device: Any = None) -> Model:
        return Model(self, device=device)

    def process_unet_state_dict_for_saving(self, state_dict: dict) -> dict:
        if self.network is not None:
            state_dict = merged(state_dict, self.network())
        return super().process_unet_state_dict_for_saving(saveable(state_dict))


class NanoLatentFormat(comfy.latent_formats.Flux):
    """Flux's scaling with the small autoencoder's own preview colours, fitted when it was trained."""

    def __init__(self) -> None:
        super().__init__()
        settings = nano_settings()
        self.latent_rgb_factors = settings["latent_rgb_factors"]
        self.latent_rgb_factors_bias = settings["latent_rgb_bias"]
        self.taesd_decoder_name = None


def load_patcher(path: Path, weight_dtype: str = "auto", disable_dynamic: bool = False) -> Any:
    """A MODEL from a file or folder of any dialect, in whatever patcher class the host uses now.

    Raises WeightsError for files that are no Z-Image transformer, and for unknown weight types.
    """
    if weight_dtype not in DTYPES:
        raise WeightsError(f"weight_dtype is {weight_dtype!r}, expected one of {', '.join(DTYPES)}")
    checkpoint = read_transformer(mapped(path))
    logging.info("Z-Image transformer: %s", checkpoint.summary)
    again = (load_patcher, (path, weight_dtype))
    return patcher_of(checkpoint, DTYPES[weight_dtype], again, disable_dynamic, built_in=path.parent == NANO)


def patcher_of(
    checkpoint: Checkpoint,
    dtype: torch.dtype | None,
    again: tuple[Callable[..., Any] | None, tuple],
    disable_dynamic: bool = False,
    built_in: bool = False,
) -> Any:
    """The MODEL of a checkpoint. dtype: of its weights, None: as they are and as the host sees fit.

    again: as `patched` takes it, a function and its arguments.
    """
    config = Config(
        {
            "image_model": "lumina2",
            **dataclasses.asdict(checkpoint.config),
            "allow_fp16": checkpoint.fits_float16,  # newer hosts ask, for cards without bfloat16
        }
    )
    if built_in:
        config.latent_format = NanoLatentFormat()
    kept = Placed({}, {})
    if not checkpoint.formats:  # fp8 without scales stays as it is: the host casts it at each use
        state = dict(checkpoint.tensors)
    elif dtype is None and not built_in:
        state, kept = quantised_state(config, checkpoint)
    else:  # a chosen type replaces the file's fp8, and fp8 saves nothing worth having in the built-in model
        state = checkpoint.plain(torch.float32 if dtype == torch.float32 else None)

    quantised, offload = bool(kept.host), management.unet_offload_device()
    found = torch.bfloat16 if kept.packed else comfy.utils.weight_dtype(state)
    stored = _set_dtypes(config, checkpoint.parameters, found, dtype, quantised)
    model = config.get_model(state, "")
    pack(model.diffusion_model, kept.packed, offload)
    patcher = patched(model.to(offload), *again, disable_dynamic)
    if kept.packed:
        config.network = weakref.ref(model.diffusion_model)
        follow_loras(patcher)
    wide = {}
    if stored.itemsize == 1 and not quantised:
        # norms, biases and pad tokens lose much in fp8 and save nothing; nor is the rest of a file narrowed
        wide = {
            key: value
            for key, value in state.items()
            if value.itemsize > 1 and (dtype is None or value.ndim < 2 or key.endswith("pad_token"))
        }
    if prefers():
        state |= checkpoint.preferences
    options = {}
    if "assign" in inspect.signature(model.load_model_weights).parameters:
        options["assign"] = patcher.is_dynamic()
    model.load_model_weights(state, "", **options)  # takes them out of state
    if wide:
        model.diffusion_model.load_state_dict(wide, strict=False, assign=True)
    check_results(patcher)
    look_before_runs(patcher)
    return patcher


def _set_dtypes(
    config: Config,
    parameters: int,
    found: torch.dtype | None,
    dtype: torch.dtype | None,
    quantised: bool,
) -> torch.dtype:
    """The types that the host's own loader would choose, of weights and computation; returns the former."""
    supported, load_device = list(config.supported_inference_dtypes), management.get_torch_device()
    if dtype is None:
        dtype = management.unet_dtype(
            model_params=parameters,
            supported_dtypes=supported,
            weight_dtype=None if quantised else found,
        )
    manual_cast = management.unet_manual_cast(None if quantised else dtype, load_device, supported)
    options = (
        {"device": load_device}
        if "device" in inspect.signature(config.set_inference_dtype).parameters
        else {}
    )
    config.set_inference_dtype(dtype, manual_cast, **options)
    return dtype
