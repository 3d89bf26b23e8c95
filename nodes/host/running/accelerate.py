"""Our S3-DiT under the weights of a MODEL that another loader made.

The layers that hold weights stay the very same modules, so that the host's loading, streaming, quantised
operations and LoRA patches go on as before; what changes is the code that calls them. It goes in as object
patches of a clone: the given MODEL stays what it was.
"""

from __future__ import annotations

import functools
import logging
import weakref
from typing import Any

import comfy.model_base
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP

from ....zimage_core.config import S3DiTConfig
from ....zimage_core.model.memo import StepMemo
from .before_run import look_before_runs
from .conds import caption_conds
from .finite import check_results
from .replaced import InPlace
from .s3dit import HostS3DiT

KEY = "zimage_accelerate"


class NotZImage(ValueError):
    """The MODEL is something else, or not made of the parts that Z-Image is made of."""


def accelerated(model: Any) -> tuple[Any, str]:
    """(a clone of the host's MODEL that runs our S3-DiT, a line for the user).

    Raises NotZImage when the MODEL is not Z-Image.
    """
    if isinstance(model.get_model_object("diffusion_model"), HostS3DiT):
        return model, "This model runs on this extension already: nothing to do."
    network = adopt(model)
    clone = model.clone()
    clone.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _follow)
    _install(clone, network)
    check_results(clone)
    look_before_runs(clone)
    return clone, f"Z-Image with {network.config.n_layers} layers, on the weights that were loaded already."


def family_settings(model: Any) -> dict:
    """The host's configuration of the network of a Z-Image or a Lumina 2; nothing for what is neither.

    Classes do not tell: Ming-Image and the Z-Image of pixels are Lumina 2 to the host as well.
    """
    if not isinstance(model.model, comfy.model_base.Lumina2):
        return {}
    settings = model.model.model_config.unet_config
    return settings if settings.get("image_model") == "lumina2" else {}


def adopt(model: Any) -> HostS3DiT:
    """Our S3-DiT whose layers are the modules of the host's network."""
    theirs = model.get_model_object("diffusion_model")
    kind, settings = type(theirs).__name__, family_settings(model)
    if not settings.get("z_image_modulation") or not hasattr(theirs, "cap_pad_token"):
        raise NotZImage(
            f"This MODEL is {type(model.model).__name__} ({kind}), not Z-Image. Connect a Z-Image MODEL, or "
            "take this node out of the graph."
        )
    config = _config(settings, theirs)
    ours = HostS3DiT(config, device="meta")
    for name, module in list(ours.named_modules()):
        if next(module.parameters(recurse=False), None) is None or module is ours:
            continue
        try:
            layer = theirs.get_submodule(name)
        except AttributeError:
            raise NotZImage(
                f"This MODEL ({kind}) has no layer {name}: another extension rebuilt its network. Load the "
                "weights with the Z-Image loader."
            ) from None
        comfy.utils.set_attr(ours, name, layer)
    for name, _ in list(ours.named_parameters(recurse=False)):  # the pad tokens
        setattr(ours, name, getattr(theirs, name))
    ours.dtype = theirs.dtype  # of the computation, which the host asks for
    for name, module in ours.named_modules():
        if isinstance(module, InPlace):
            module.replace(theirs.get_submodule(name))
    return ours.eval()


def _config(settings: dict, network: torch.nn.Module) -> S3DiTConfig:
    """From the host's configuration of the network; sizes inside layers are those of the layers."""
    return S3DiTConfig(
        dim=settings["dim"],
        n_layers=len(network.layers),
        n_refiner_layers=len(network.noise_refiner),
        n_heads=settings["n_heads"],
        n_kv_heads=settings["n_kv_heads"],
        in_channels=settings.get("in_channels", S3DiTConfig.in_channels),
        cap_feat_dim=settings["cap_feat_dim"],
        axes_dims=tuple(settings["axes_dims"]),
        rope_theta=settings.get("rope_theta", S3DiTConfig.rope_theta),
        t_scale=settings.get("time_scale", S3DiTConfig.t_scale),
        pad_multiple=settings.get("pad_tokens_multiple", S3DiTConfig.pad_multiple),
        siglip_feat_dim=settings.get("siglip_feat_dim"),
    )


def _install(patcher: Any, network: HostS3DiT) -> None:
    patcher.add_object_patch("diffusion_model", network)
    # the model holds this patch while it runs, so the patch must not hold the model
    owner = weakref.ref(patcher.model)
    conds = functools.partial(_conds, owner, network.config.pad_multiple, StepMemo())
    patcher.add_object_patch("extra_conds", conds)


def _conds(owner: weakref.ref, multiple: int, runs: StepMemo, **cond: Any) -> dict:
    model = owner()
    out = type(model).extra_conds(model, **cond)
    return caption_conds(out, cond, model, multiple, runs)


def _follow(patcher: Any, clone: Any) -> None:
    """The host makes some clones on freshly loaded weights: those get a network around their own layers."""
    if clone.model is not patcher.model:
        for name in ("diffusion_model", "extra_conds"):
            clone.object_patches.pop(name, None)
        _install(clone, adopt(clone))
        logging.debug("Z-Image Accelerate moved to the weights of a new clone")
