"""Our S3-DiT as the host's network: its attention, its operations, its wrappers and patches."""

from __future__ import annotations

from typing import Any

import comfy.ops
import torch
from comfy.ldm.modules import attention as host_attention
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ....zimage_core.conditions.packed import Packed, Segments
from ....zimage_core.conditions.references import References
from ....zimage_core.conditions.regions import Regions
from ....zimage_core.model import backends, fused
from ....zimage_core.model.attention import Attention
from ....zimage_core.model.hooks import BlockHook
from ....zimage_core.model.rope import Grid, rotate
from ....zimage_core.model.s3dit import Condition, Prompt, S3DiT
from ....zimage_core.model.sequence import NO_WEIGHTS, Captions, Prepared, Span, Time, Weights
from .conds import Run
from .graphs import step_by_graph
from .one_pass import COMPILED, CONTROLS, ON_THE_WAY, OVERRIDE, in_one_pass, packs
from .parts import cut, parts_of, report_lost
from .patches import HostPatches, Replacements
from .prefetch import prefetches
from .replaced import InPlace

# SageAttention's fast kernels leave masks out without a word; newer hosts look whether these can take one.
SAGE_IS_ASKED = hasattr(host_attention, "SAGE_ATTENTION_SUPPORTS_MASK")
MASKLESS = None if SAGE_IS_ASKED else getattr(host_attention, "attention_sage", None)
HANDS_ON = {"torch.compile", "easycache"}  # keys of the host's own, which change no caption and no time


def changed_on_the_way(options: dict) -> bool:
    """Whether wrappers of other nodes may call us with another caption or time than the sampler has."""
    wrappers = options.get("wrappers", {})
    return any(wrappers.get(kind, {}).keys() - HANDS_ON for kind in ON_THE_WAY)


def prefers() -> bool:
    """Whether this host knows preferred attentions."""
    return hasattr(host_attention, "ComfyAttention")


def left_to_torch(attend: Any, preferred: torch.nn.Module | None, options: dict) -> bool:
    """Whether neither the user, nor a file, nor a node has chosen an attention."""
    chosen = OVERRIDE in options or getattr(preferred, "function", preferred) is not None
    return attend is host_attention.attention_pytorch and not chosen


def norm_weight(norm: torch.nn.Module, x: Tensor) -> Tensor | None:
    """As the host uses it in this norm, be it streamed, patched or cast: the same wherever it lies."""
    if norm.bias is not None:
        return None
    if not (norm.comfy_cast_weights or norm.weight_function or norm.bias_function):
        return norm.weight
    weight, bias, stream = comfy.ops.cast_bias_weight(norm, x, offloadable=True)
    weight = weight.clone()  # the host uses that memory again
    comfy.ops.uncast_bias_weight(norm, weight, bias, stream)
    return weight


fused.WEIGHT_OF[comfy.ops.disable_weight_init.RMSNorm] = norm_weight


class HostAttention(InPlace, Attention):
    """Attention through the host, so that its backends, overrides and attention patches apply.

    Newer hosts have a module in each of theirs that holds which attention a file or a LoRA prefers.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if prefers():
            self.comfy_attention = host_attention.ComfyAttention()

    def replace(self, module: torch.nn.Module) -> None:
        super().replace(module)
        self._modules.pop("comfy_attention", None)  # the host's own counts

    def forward(self, x: Tensor, span: Span, weights: Weights = NO_WEIGHTS) -> Tensor:
        if isinstance(span.attend, Segments):  # each module may prefer an attention of its own
            span = span._replace(attend=span.attend._replace(attention=self))
        changes = span.options.get("patches", {}).get("attn1_patch", ())
        if not changes or "block_index" not in span.options:
            return super().forward(x, span, weights)
        # patches see [B, heads, S, D] before rope, and a rope table to match
        q, k, v = self.heads_of(x)
        seen = {
            name: t.transpose(1, 2)
            for name, t in zip("qkv", (self.q_norm(q), self.k_norm(k), v), strict=True)
        }
        seen |= {"pe": span.freqs.transpose(1, 2), "attn_mask": span.bias}
        for patch in changes:
            q, k, v, *_ = seen.values()
            more = {"pe": seen["pe"], "attn_mask": seen["attn_mask"]}
            out = patch(q, k, v, **more, extra_options=self.extra_options(span.options))
            seen |= {name: out[name] for name in seen if name in out}
        q, k, v, freqs = (seen[name].transpose(1, 2) for name in ("q", "k", "v", "pe"))
        q, k = rotate(q, freqs), rotate(k, freqs)
        return self.project_out(self.attend(q, k, v, seen["attn_mask"], span.options))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: dict) -> Tensor:
        if bias is not None and bias.dtype == torch.bool:  # not every backend of the host takes bool
            bias = torch.zeros_like(bias, dtype=q.dtype).masked_fill_(~bias, torch.finfo(q.dtype).min)
        attend = host_attention.optimized_attention_masked
        if bias is not None and attend is MASKLESS:
            attend = host_attention.attention_pytorch
        preferred = getattr(self, "comfy_attention", None) if prefers() else None
        if (
            bias is None
            and left_to_torch(attend, preferred, options)
            and (faster := backends.faster(q.device))
        ):
            out = faster(q, k, v, None).flatten(2)
        else:
            more = {} if preferred is None else {"preferred_attention": preferred}
            out = attend(
                *self.by_head(q, k, v),
                self.heads,
                bias,
                skip_reshape=True,
                transformer_options=options,
                **more,
            )
        if "block_index" in options:
            for patch in options.get("patches", {}).get("attn1_output_patch", ()):
                out = patch(out, self.extra_options(options))
        return out

    def attend_within(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, options: dict
    ) -> Tensor | None:
        preferred = getattr(self, "comfy_attention", None) if prefers() else None
        if not left_to_torch(host_attention.optimized_attention_masked, preferred, options):
            return None
        return super().attend_within(q, k, v, starts, longest, options)

    def extra_options(self, options: dict) -> dict:
        return {**options, "n_heads": self.heads, "dim_head": self.head_dim}


class HostS3DiT(InPlace, S3DiT):
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
        """As the host calls its networks; kwargs: what `caption_conds` writes, and what the host adds."""
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(self.velocity, self, wrappers)
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

    def velocity(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        num_tokens: Any = None,
        attention_mask: Tensor | None = None,
        transformer_options: dict = {},
        **kwargs: Any,
    ) -> Tensor:
        def captions() -> Captions:
            return Captions.of(context, num_tokens, attention_mask)

        x, timesteps, *given = self.prepare_step(x, timesteps, captions, transformer_options, **kwargs)
        out = step_by_graph(self, x, timesteps, given, transformer_options)
        return self.step(x, *given) if out is None else out

    @torch.compiler.disable
    def prepare_step(
        self,
        x: Tensor,
        timesteps: Tensor,
        captions: Any,
        options: dict,
        kept: tuple = (),
        ref_latents: list[Tensor] = (),
        ref_contexts: list[Tensor] | None = None,
        siglip_feats: list[Tensor] | None = None,
        regions: tuple = (),
        **ignored: Any,
    ) -> tuple[Tensor, Tensor, Prepared, Time, list[BlockHook]]:
        """Latents, their timesteps, and what else `step` takes.

        captions: makes them; kept: a Kept of each conditioning in the batch.

        Outside the graph of torch.compile: memos are Python objects, and another one would be another graph.
        What is as long as the prompt is marked so that another length is none.
        """
        # training changes the weights within a run, and goes back through each step once
        repeats = kept and not torch.is_grad_enabled() and not changed_on_the_way(options)
        run = (kept[0].run if repeats else None) or Run()
        parts = parts_of([each.area for each in kept] or [()], options.get("context_window"))
        scaling = options.get("rope_options") or {}
        grid = Grid(**{name: scaling[name] for name in Grid._fields if name in scaling})
        # conditionings of one part of the picture have the same latents
        shared = len(kept) > 1 and len(set(parts)) == 1 and not ref_latents and not regions and packs(options)

        def condition() -> Condition:
            prompt = Prompt(captions(), grid)
            if regions and ref_latents:
                raise ValueError("prompts for regions and reference images cannot go together")
            if ref_latents:
                return References.of(prompt, ref_latents, ref_contexts, siglip_feats)
            if shared:
                keys = [(False, (each,), parts[:1], x.shape[0] // len(kept), *key[4:]) for each in kept]
                return in_one_pass(prompt, keys, run.memo, self)
            if not regions:
                return prompt
            own = [region._replace(weight=cut(region.weight, parts)) for region in regions]
            if own[0].weight.shape[-2:] != x.shape[-2:]:
                report_lost(x.shape[-2:], own[0].weight.shape[-2:])
            return Regions(prompt, own)

        key = (shared, kept, parts, x.shape[0], grid, x.dtype, x.device)
        patches = options.get("patches", {}).get(CONTROLS, ())
        controls = [control for patch in patches if (control := patch.at(x, options, parts)) is not None]
        replacements = options.get("patches_replace", {}).get("dit", {})
        replaced = [Replacements(replacements)] if replacements else []
        compiled = [options[COMPILED]] if COMPILED in options else []
        hooks = [*prefetches(self, options), HostPatches(options), *controls, *replaced, *compiled]
        made = run.memo.once(key, condition)
        if isinstance(made, Packed):  # its conditions share the latents
            x, timesteps = (t[: x.shape[0] // len(kept)] for t in (x, timesteps))
        # the host's tensor of this step is the same one for every conditioning, the timesteps are not
        kind = (x.shape[0], x.dtype, x.device)
        timesteps = run.steps.once(options.get("sigmas", timesteps), kind, lambda: timesteps)
        prepared, time, hooks = self.prepare(x, timesteps, made, hooks, run.memo)
        joint = prepared.joint
        for tensor, dim in ((prepared.text, 1), (joint.freqs, 1), (joint.bias, 2), (joint.bias, 3)):
            if tensor is not None and tensor.shape[dim] > 1:
                torch._dynamo.maybe_mark_dynamic(tensor, dim)
        return x, timesteps, prepared, time, hooks
