"""Our S3-DiT as the host's model: its attention, its operations, its wrappers and patches."""

from __future__ import annotations

import dataclasses
from typing import Any

import comfy.model_base
import torch
from comfy.ldm.modules import attention as host_attention
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ....zimage_core.conditions.control import Control, ControlPath
from ....zimage_core.conditions.references import renewed
from ....zimage_core.config import S3DiTConfig
from ....zimage_core.model.attention import Attention
from ....zimage_core.model.memo import TimestepMemo
from ....zimage_core.model.rope import rotate
from ....zimage_core.model.s3dit import Block, Prepared, S3DiT
from .conds import caption_conds
from .references import CELLS, PATCH_AREA, reference_conds
from .regions import REGIONS

# The host's rule for one forward: latent cells x bytes of the type x this, in percent of a MiB. Our peak is
# 86 to 91 kB a token in bfloat16 (bench memory); 1.25 leaves room for what libraries and allocator add.
MEMORY_FACTOR = 1.25
# SageAttention's fast kernels leave masks out without a word; newer hosts look whether these can take one.
SAGE_IS_ASKED = hasattr(host_attention, "SAGE_ATTENTION_SUPPORTS_MASK")
MASKLESS = None if SAGE_IS_ASKED else getattr(host_attention, "attention_sage", None)
CONTROLS = "zimage_control"  # our control networks among the patches of a MODEL
CONFIG_FIELDS = {field.name for field in dataclasses.fields(S3DiTConfig)}


class HostAttention(Attention):
    """Attention through the host, so that its backends and overrides apply, with its attention patches
    around it in the joint layers.
    """

    def forward(
        self, x: Tensor, mask: Tensor | None, freqs: Tensor, transformer_options: dict = {}
    ) -> Tensor:
        patches = transformer_options.get("patches", {})
        changes = patches.get("attn1_patch", ())
        if not changes or "block_index" not in transformer_options:
            return super().forward(x, mask, freqs, transformer_options)
        # patches see [B, heads, S, D] before rope, and a rope table to match
        found = dict(zip("qkv", (t.transpose(1, 2) for t in self.project(x)), strict=True))
        found |= {"pe": freqs.transpose(1, 2), "attn_mask": mask}
        for patch in changes:
            out = patch(**found, extra_options=self.extra_options(transformer_options))
            found |= {name: out[name] for name in found if name in out}
        q, k, v, freqs = (found[name].transpose(1, 2) for name in ("q", "k", "v", "pe"))
        q, k = rotate(q, freqs), rotate(k, freqs)
        return self.out(self.attend(q, k, v, found["attn_mask"], transformer_options))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, transformer_options: dict
    ) -> Tensor:
        if mask is not None and mask.dtype == torch.bool:  # not every backend of the host takes bool
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, torch.finfo(q.dtype).min)
        attend = host_attention.optimized_attention_masked
        if mask is not None and attend is MASKLESS:
            attend = host_attention.attention_pytorch
        out = attend(
            *self.by_head(q, k, v),
            self.heads,
            mask,
            skip_reshape=True,
            transformer_options=transformer_options,
        )
        if "block_index" in transformer_options:
            for patch in transformer_options.get("patches", {}).get("attn1_output_patch", ()):
                out = patch(out, self.extra_options(transformer_options))
        return out

    def extra_options(self, transformer_options: dict) -> dict:
        return {**transformer_options, "n_heads": self.heads, "dim_head": self.head_dim}


class HostS3DiT(S3DiT):
    """The same mathematics; what other nodes hang on a MODEL has its effect here."""

    attention_class = HostAttention

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        num_tokens: Any = None,
        attention_mask: Tensor | None = None,
        transformer_options: dict = {},
        **kwargs: Any,
    ) -> Tensor:
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(self.velocity, self, wrappers)
        if CONTROLS in transformer_options.get("patches", {}):
            kwargs["controls"] = self.controls(x, transformer_options)
        # transformer_options by keyword: EasyCache and others read it from there
        return executor.execute(
            x,
            timesteps,
            context,
            num_tokens,
            attention_mask,
            transformer_options=transformer_options,
            **kwargs,
        )

    @torch.compiler.disable
    def prepare(self, *given: Any) -> Prepared:
        """Outside the graph of torch.compile: the memos are Python objects, and another one would be another
        graph. What is as long as the prompt is marked so that another length is none.
        """
        prepared = super().prepare(*given)
        sized = ((prepared.caption, 1), (prepared.freqs, 1), (prepared.key_mask, 2), (prepared.key_mask, 3))
        for tensor, dim in sized:
            if tensor is not None and tensor.shape[dim] > 1:
                torch._dynamo.maybe_mark_dynamic(tensor, dim)
        return prepared

    @torch.compiler.disable
    def controls(self, x: Tensor, transformer_options: dict) -> list[Control]:
        """The controls on this MODEL that steer this step. Outside of graphs: it waits for the sigma."""
        patches = transformer_options["patches"][CONTROLS]
        return [control for patch in patches if (control := patch.at(x, transformer_options)) is not None]

    @torch.compiler.disable
    def start_controls(self, *given: Any) -> list[ControlPath]:
        """Outside of graphs for its memos, as `prepare` is."""
        return super().start_controls(*given)

    def refine_image(self, image: Tensor, given: Prepared, x: Tensor, transformer_options: dict) -> Tensor:
        """`noise_refiner` patches see and change the image's tokens, not those of reference images."""
        patches = transformer_options.get("patches", {}).get("noise_refiner", ())
        start = 0 if given.references is None else given.references.shape[1]
        shown = {
            "img_input": image[:, start:] if patches else None,
            "txt": given.caption,
            "pe": given.image_freqs[:, start:],
            "vec": given.adaln_input,
            "x": x,
            "transformer_options": transformer_options,
            "block_type": "noise_refiner",
        }
        for control in given.controls:
            control.before_refiner(image)
        for index, block in enumerate(self.noise_refiner):
            modulation = given.refiner_modulations[index]
            image = block(image, None, given.image_freqs, modulation, transformer_options=transformer_options)
            for control in given.controls:
                image = control.after_refiner(index, image)
            for patch in patches:
                out = patch({**shown, "img": image[:, start:], "block_index": index})
                if "img" in out:
                    image = torch.cat((image[:, :start], out["img"]), dim=1) if start else out["img"]
        return image

    def joint(self, hidden: Tensor, given: Prepared, x: Tensor, transformer_options: dict) -> Tensor:
        """`double_block` patches change the image part in place or return it; `patches_replace` runs in
        place of a block, under either of the host's names for its blocks.
        """
        start = given.start
        options = {
            **transformer_options,
            "total_blocks": len(self.layers),
            "block_type": "double",
            "img_slice": [start, hidden.shape[1]],
        }
        patches = options.get("patches", {}).get("double_block", ())
        replacements = options.get("patches_replace", {}).get("dit", {})
        entering = hidden if patches else None
        for control in given.controls:
            control.before_layers(hidden)
        for index, block in enumerate(self.layers):
            options["block_index"] = index
            run = Layer(block, given, index)
            if ("double_block", index) in replacements:
                replace = replacements["double_block", index]
                args = run.arguments(options, img=hidden[:, start:], txt=hidden[:, :start])
                out = replace(args, {"original_block": run.split})
                hidden = torch.cat((out["txt"], out["img"]), dim=1)
            elif ("single_block", index) in replacements:
                replace = replacements["single_block", index]
                args = run.arguments(options, img=hidden)
                hidden = replace(args, {"original_block": run.whole})["img"]
            else:
                hidden = run(hidden, options)
            for control in given.controls:
                hidden = control.after_layer(index, hidden)
            for patch in patches:
                out = patch(
                    {
                        "img": hidden[:, start:],
                        "img_input": entering[:, start:],
                        "txt": hidden[:, :start],
                        "pe": given.freqs[:, start:],
                        "vec": given.adaln_input,
                        "x": x,
                        "block_index": index,
                        "transformer_options": options,
                    }
                )
                if "img" in out:
                    hidden[:, start:] = out["img"]
                if "txt" in out:
                    hidden[:, :start] = out["txt"]
        return hidden


class Layer:
    """One joint block of one forward, as `patches_replace` sees it: arguments in, arguments out."""

    def __init__(self, block: Block, given: Prepared, index: int) -> None:
        self.block, self.given, self.modulation = block, given, given.layer_modulations[index]

    def __call__(self, hidden: Tensor, options: dict) -> Tensor:
        given = self.given
        return self.block(hidden, given.key_mask, given.freqs, self.modulation, transformer_options=options)

    def arguments(self, options: dict, **tokens: Tensor) -> dict:
        given = self.given
        return {
            **tokens,
            "vec": given.adaln_input,
            "pe": given.freqs,
            "attn_mask": given.key_mask,
            "transformer_options": options,
        }

    def split(self, args: dict) -> dict:
        """The original of a double block: caption and image apart."""
        length = args["txt"].shape[1]
        hidden = self._original(torch.cat((args["txt"], args["img"]), dim=1), args)
        return {"img": hidden[:, length:], "txt": hidden[:, :length]}

    def whole(self, args: dict) -> dict:
        """The original of a single block: all tokens in one."""
        return {"img": self._original(args["img"], args)}

    def _original(self, hidden: Tensor, args: dict) -> Tensor:
        vec, options = args["vec"], args.get("transformer_options", {})
        modulation = self.modulation
        if vec is not self.given.adaln_input:
            modulation = renewed(modulation, self.block.modulation(vec))
        return self.block(hidden, args.get("attn_mask"), args["pe"], modulation, transformer_options=options)


def build(device: Any = None, dtype: Any = None, operations: Any = None, **unet_config: Any) -> HostS3DiT:
    """What BaseModel calls with its unet_config; fields that only the host reads are left out."""
    config = S3DiTConfig(**{k: v for k, v in unet_config.items() if k in CONFIG_FIELDS})
    return HostS3DiT(config, device=device, dtype=dtype, operations=operations)


class Model(comfy.model_base.Lumina2):
    """The host's Lumina2 family with our network, so that LoRA maps and other nodes take it for what it
    is.
    """

    def __init__(self, model_config: Any, device: Any = None) -> None:
        comfy.model_base.BaseModel.__init__(
            self, model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=build
        )
        self.timestep_memo = TimestepMemo()
        self.memory_usage_factor = MEMORY_FACTOR
        self.memory_usage_factor_conds = ("c_crossattn", *CELLS)
        self.memory_usage_shape_process = {"c_crossattn": lambda shape: [shape[0], 1, shape[1] * PATCH_AREA]}

    def extra_conds_shapes(self, **kwargs: Any) -> dict:
        caption = kwargs.get("cross_attn")
        shapes = {} if caption is None else {"c_crossattn": list(caption.shape)}
        if regions := kwargs.get(REGIONS):
            shapes["c_crossattn"][1] += sum(region.context.shape[1] for region in regions)
        if self.model_config.unet_config.get("siglip_feat_dim") is not None:
            shapes |= {name: cond.size() for name, cond in reference_conds(kwargs).items()}
        return shapes

    def extra_conds(self, **kwargs: Any) -> dict:
        multiple = self.model_config.unet_config["pad_multiple"]
        return caption_conds(super().extra_conds(**kwargs), kwargs, self, multiple, self.timestep_memo)
