"""What other nodes hang on a MODEL to change or replace its blocks, as hooks around ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ....zimage_core.model.hooks import BlockCall, BlockHook
from ....zimage_core.model.memo import RunMemo
from ....zimage_core.model.s3dit import S3DiT
from ....zimage_core.model.sequence import Prepared, Span, Time, with_noisy


def fitting(options: dict) -> dict:
    """The host's options without attention patches that are made for its UNets or video models.

    Those are called in other ways, and the host's own Z-Image does not call them. What a transformer's patch
    is called with has a rope table, `pe`. Patches behind attention look alike for all models, but they undo
    what one from the same module has done in front of it.
    """
    patches = options.get("patches", {})
    others = [patch for patch in patches.get("attn1_patch", ()) if not _takes_rope(patch)]
    modules = {getattr(patch, "__module__", None) for patch in others}
    kept = {
        "attn1_patch": [patch for patch in patches.get("attn1_patch", ()) if patch not in others],
        "attn1_output_patch": [
            patch
            for patch in patches.get("attn1_output_patch", ())
            if getattr(patch, "__module__", None) not in modules
        ],
    }
    # patches of the host's leave things for one another there
    return {"model_patch_data": {}, **options, "patches": {**patches, **kept}}


def _takes_rope(patch: Callable) -> bool:
    parameters = inspect.signature(patch).parameters.values()
    return any(parameter.name == "pe" or parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)


class HostPatches(BlockHook):
    """The host's options for attention, and patches that see the tokens behind a block.

    `noise_refiner` and `double_block` patches get the image's tokens, not those of reference images. They
    change them in place or return them.
    """

    KINDS = {"noise_refiner": "noise_refiner", "layers": "double_block"}  # of patches, by stack

    def __init__(self, options: dict) -> None:
        self.options = fitting(options)
        self.patches = {stack: options.get("patches", {}).get(kind, ()) for stack, kind in self.KINDS.items()}
        self.capturable = not any(self.patches.values())

    def prepare(self, model: S3DiT, x: Tensor, prepared: Prepared, time: Time, memo: RunMemo) -> BlockHook:
        references = 0 if prepared.references is None else prepared.references.shape[1]
        self.starts = {"noise_refiner": references, "layers": prepared.start}
        self.total, self.text = len(model.layers), prepared.text
        if any(self.patches.values()):
            self.shown = {"vec": time.embedding, "x": model.even(x)}
        return self

    def enter(self, stack: str, hidden: Tensor, span: Span) -> tuple[Tensor, Span]:
        if self.patches.get(stack):
            self.entering = hidden[:, self.starts[stack] :]
        return hidden, span._replace(options=self.options)

    def block(self, stack: str, index: int, call: BlockCall, hidden: Tensor, span: Span) -> Tensor:
        if stack == "layers":
            options = {
                **self.options,
                "total_blocks": self.total,
                "block_type": "double",
                "img_slice": [self.starts[stack], hidden.shape[1]],
                "block_index": index,
            }
            span = span._replace(options=options)
        hidden = call(hidden, span)
        for patch in self.patches.get(stack, ()):
            hidden = self._patched(patch, stack, index, hidden, span)
        return hidden

    def _patched(self, patch: object, stack: str, index: int, hidden: Tensor, span: Span) -> Tensor:
        start = self.starts[stack]
        args = {
            **self.shown,
            "img": hidden[:, start:],
            "img_input": self.entering,
            "txt": hidden[:, :start] if stack == "layers" else self.text,
            "pe": span.freqs[:, start:],
            "block_index": index,
            "transformer_options": span.options,
        }
        if stack == "layers":
            out = patch(args)
            for name, part in (("img", slice(start, None)), ("txt", slice(start))):
                if name in out:
                    hidden[:, part] = out[name]
            return hidden
        out = patch({**args, "block_type": stack})
        if "img" not in out:
            return hidden
        return torch.cat((hidden[:, :start], out["img"]), dim=1) if start else out["img"]


class Replacements(BlockHook):
    """`patches_replace`: code in place of a layer, under either of the host's names for its blocks."""

    capturable = False

    def __init__(self, replacements: dict) -> None:
        self.replacements = replacements

    def prepare(self, model: S3DiT, x: Tensor, prepared: Prepared, time: Time, memo: RunMemo) -> BlockHook:
        self.layers, self.time, self.start = model.layers, time, prepared.start
        return self

    def block(self, stack: str, index: int, call: BlockCall, hidden: Tensor, span: Span) -> Tensor:
        if stack != "layers":
            return call(hidden, span)
        original = partial(self._original, index, call, span)
        args = {
            "vec": self.time.embedding,
            "pe": span.freqs,
            "attn_mask": span.bias,
            "transformer_options": span.options,
        }
        if replace := self.replacements.get(("double_block", index)):
            args |= {"img": hidden[:, self.start :], "txt": hidden[:, : self.start]}
            out = replace(args, {"original_block": partial(_apart, original)})
            return torch.cat((out["txt"], out["img"]), dim=1)
        if replace := self.replacements.get(("single_block", index)):
            return replace(args | {"img": hidden}, {"original_block": partial(_whole, original)})["img"]
        return call(hidden, span)

    def _original(self, index: int, call: BlockCall, span: Span, hidden: Tensor, args: dict) -> Tensor:
        """The layer with what the replacement made of its arguments."""
        vec, options = args["vec"], args.get("transformer_options", {})
        if vec is not self.time.embedding:
            block = self.layers[index]
            call = partial(block, scales=with_noisy(self.time.layers[index], block.modulation(vec)))
        return call(hidden, span._replace(freqs=args["pe"], bias=args.get("attn_mask"), options=options))


def _apart(original: object, args: dict) -> dict:
    """The original of a double block: caption and image apart."""
    length = args["txt"].shape[1]
    hidden = original(torch.cat((args["txt"], args["img"]), dim=1), args)
    return {"img": hidden[:, length:], "txt": hidden[:, :length]}


def _whole(original: object, args: dict) -> dict:
    """The original of a single block: all tokens in one."""
    return {"img": original(args["img"], args)}
