"""The reference implementations with our random weights in them."""

from __future__ import annotations

import torch
from diffusers import ZImageControlNetModel, ZImageTransformer2DModel
from torch import Tensor, nn
from transformers import Qwen3Config as PeerQwen3Config

from tests.core.reference import Reference
from zimage_core import Qwen3Config, S3DiT
from zimage_core.conditions.control import ControlNet
from zimage_core.weights.keys import transformer_to_diffusers


def reference_of(model: S3DiT) -> Reference:
    c = model.config
    return Reference(
        transformer_to_diffusers(model.state_dict()), c.n_heads, c.axes_dims, c.rope_theta, c.norm_eps
    )


def diffusers_of(model: S3DiT) -> ZImageTransformer2DModel:
    """diffusers fixes the timestep MLP at 1024, so a config of ours with another width gets one put in."""
    c = model.config
    with torch.device("meta"):
        peer = ZImageTransformer2DModel(
            dim=c.dim, n_layers=c.n_layers, n_refiner_layers=c.n_refiner_layers,
            n_heads=c.n_heads, n_kv_heads=c.n_kv_heads,
            norm_eps=c.norm_eps, cap_feat_dim=c.cap_feat_dim, rope_theta=c.rope_theta, t_scale=c.t_scale,
            axes_dims=list(c.axes_dims), axes_lens=[1536, 512, 512], in_channels=c.in_channels,
            siglip_feat_dim=c.siglip_feat_dim,
        )  # fmt: skip
        if c.t_hidden != 1024:
            peer.t_embedder.mlp = nn.Sequential(
                nn.Linear(256, c.t_hidden), nn.SiLU(), nn.Linear(c.t_hidden, c.t_dim)
            )
    peer.load_state_dict(transformer_to_diffusers(model.state_dict()), assign=True)
    return peer.eval().requires_grad_(False)


def diffusers_velocity(
    peer: ZImageTransformer2DModel, x: Tensor, sigma: Tensor, captions: list[Tensor]
) -> Tensor:
    out = peer(list(x.unsqueeze(2).unbind(0)), 1.0 - sigma, captions, return_dict=False)[0]
    return -torch.stack(list(out)).squeeze(2)


def diffusers_control_of(network: ControlNet, base: S3DiT, peer: ZImageTransformer2DModel) -> nn.Module:
    """diffusers' ControlNet with this one's weights, and what it shares of the transformer's peer."""
    c, sizes = network.config, network.config.blocks
    routing = {"tokens": None, "refiner": "control_noise_refiner", "layers": "control_layers"}[c.routing]
    with torch.device("meta"):
        control = ZImageControlNetModel(
            control_layers_places=list(c.hint_layers(base.config)),
            control_refiner_layers_places=list(range(sizes.n_refiner_layers)),
            control_in_dim=c.channels, add_control_noise_refiner=routing, dim=sizes.dim,
            n_refiner_layers=sizes.n_refiner_layers, n_heads=sizes.n_heads, n_kv_heads=sizes.n_kv_heads,
            norm_eps=sizes.norm_eps,
        )  # fmt: skip
    control.load_state_dict(transformer_to_diffusers(network.state_dict()), assign=True)
    return ZImageControlNetModel.from_transformer(control.eval(), peer)


@torch.no_grad()
def diffusers_controlled_velocity(
    peer: ZImageTransformer2DModel,
    controls: list[tuple[nn.Module, Tensor, float]],
    x: Tensor,
    sigma: Tensor,
    captions: list[Tensor],
) -> Tensor:
    """The velocity of one step under controls, each (network, latent, strength).

    diffusers keeps the hints for the noise refiner inside its ControlNet. The network was trained with them
    in the transformer's refiner too, where they are added here.
    """
    hints: list[Tensor] = []
    samples: dict[int, Tensor] = {}
    for control, latent, strength in controls:
        routing = control.add_control_noise_refiner
        if routing is not None:
            stack: list[Tensor] = []
            last = getattr(control, routing)[-1]
            hook = last.register_forward_hook(lambda module, inputs, out, stack=stack: stack.append(out))
        found = control(
            list(x.unsqueeze(2)),
            1.0 - sigma,
            captions,
            list(latent.unsqueeze(2)),
            conditioning_scale=strength,
        )
        samples = {k: v + samples.get(k, 0.0) for k, v in found.items()}
        if routing is not None:
            hook.remove()
            hints = [strength * hint for hint in stack[0].unbind()[: len(peer.noise_refiner)]]
    hooks = [
        block.register_forward_hook(lambda module, inputs, out, hint=hint: out + hint)
        for block, hint in zip(peer.noise_refiner, hints, strict=False)
    ]
    out = peer(
        list(x.unsqueeze(2)), 1.0 - sigma, captions, return_dict=False, controlnet_block_samples=samples
    )[0]
    for hook in hooks:
        hook.remove()
    return -torch.stack(list(out)).squeeze(2)


def qwen3_config(config: Qwen3Config) -> PeerQwen3Config:
    """transformers' configuration of the same sizes."""
    return PeerQwen3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=True,
    )
