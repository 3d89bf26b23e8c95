"""Layers that stay in memory as a file stores them, and become matrices one at a time, as they run."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import comfy.hooks
import comfy.lora
import comfy.model_management as management
import comfy.ops
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ....zimage_core.weights import WeightsError
from ....zimage_core.weights.layouts import COMPANIONS, matrix_of, shape_of

KEY = "zimage_packed"
MARKER = "comfy_quant"  # ComfyUI's name for what says how a layer is stored


def _nobody() -> None:
    """A weak reference to nothing yet."""


class PackedLinear(torch.nn.Linear, comfy.ops.CastWeightBiasOp):
    """x @ W^T + b of a layer whose W is stored in a format of LAYOUTS.

    The host moves, streams and counts what is stored. A LoRA does not fit into that, so nothing is ever
    written back: changes are added to the matrix when it is made, of resident layers as of streamed ones.
    """

    # Where the host puts what is to be done to weights that it streams: `changed` does it to all.
    weight_function = property(lambda self: [], lambda self, functions: None)
    weight_lowvram_function = property(lambda self: None, lambda self, function: None)

    def __init__(self, layer: torch.nn.Module, spec: Mapping[str, Any], device: torch.device) -> None:
        """In the place of `layer`, empty until a state dict is loaded, to `device`."""
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.spec, self.device = dict(spec), device
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        self.changes: list = []
        self.wrappers: list = []
        self.path = ""  # the host's name for the weight
        self.model = self.patcher = _nobody

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        *others: list[str],
    ) -> None:
        """Every tensor in its own type; torch would make them the types and shapes of a plain layer."""
        assign = local_metadata.get("assign_to_params_buffers", False)
        for name in ("weight", "bias", MARKER, *COMPANIONS):
            value = state_dict.get(prefix + name)
            if value is None:
                continue
            value = value if assign else value.to(self.device, copy=True)
            if name in ("weight", "bias"):
                self.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
            else:
                self.register_buffer(name, value)
        if self.weight is None:
            missing_keys.append(f"{prefix}weight")

    @property
    def matrix_shape(self) -> torch.Size:
        return torch.Size(shape_of(self.weight, self.spec))

    def forward(self, x: Tensor) -> Tensor:
        comfy.ops.run_every_op()
        stored, bias, stream = comfy.ops.cast_bias_weight(
            self, dtype=self.weight.dtype, device=x.device, bias_dtype=x.dtype, offloadable=True
        )
        out = torch.nn.functional.linear(x, self.changed(self.matrix(stored, x.dtype)), bias)
        comfy.ops.uncast_bias_weight(self, stored, bias, stream)
        return out

    def matrix(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """What `stored`, the weight wherever it is, stands for: a new tensor [out, in]."""
        parts = {
            name: management.cast_to_device(part, stored.device, None)
            for name, part in self.named_buffers(recurse=False)
            if name != MARKER
        }
        return matrix_of(parts | {"weight": stored}, self.spec, dtype)

    def changed(self, matrix: Tensor) -> Tensor:
        """The matrix with LoRAs and hooks, in its own type; it may be written into."""
        for changes in (self.changes, of_hooks(self.__dict__)):
            if changes:
                matrix = comfy.lora.calculate_weight(changes, matrix, self.path, matrix.dtype)
        for wrapper in self.wrappers:
            matrix = wrapper(matrix)
        return matrix

    def follow(self, patcher: Any, path: str) -> None:
        """From now on with the LoRAs of `patcher`, under the name that it has for this weight."""
        self.path = path
        self.changes = list(patcher.patches.get(path, ()))
        self.wrappers = list(patcher.weight_wrapper_patches.get(path, ()))
        # a clone that is loaded already may be followed by another with the same LoRAs and other hooks
        self.model, self.patcher = weakref.ref(patcher.model), weakref.ref(patcher)

    # By these two the host merges LoRAs, for which it takes the weight as numbers of another type.
    def convert_weight(self, weight: Tensor, inplace: bool = False, **kwargs: Any) -> Tensor:
        return self.matrix(weight.to(self.weight.dtype), torch.float32)

    def set_weight(self, weight: Tensor, return_weight: bool = False, **kwargs: Any) -> Tensor | None:
        return self.weight if return_weight else None


def of_hooks(layer: Mapping[str, Any]) -> list:
    """What hooks of the patcher that runs now do to a packed layer; they change from one call to the next.

    layer: its attributes.
    """
    patcher = getattr(layer["model"](), "current_patcher", None) or layer["patcher"]()
    hooks = getattr(patcher, "current_hooks", None)
    return patcher.get_combined_hook_patches(hooks).get(layer["path"], []) if hooks else []


def is_changed(layer: Mapping[str, Any]) -> bool:
    """Whether the matrix of a layer with these attributes is packed, and now another than what is stored."""
    return "changes" in layer and bool(layer["changes"] or layer["wrappers"] or of_hooks(layer))


def pack(network: torch.nn.Module, formats: Mapping[str, Mapping[str, Any]], device: torch.device) -> None:
    """Put packed layers, still empty, in the places of those that `formats` names."""
    for name, spec in formats.items():
        comfy.utils.set_attr(network, name, PackedLinear(network.get_submodule(name), spec, device))


def follow_loras(patcher: Any) -> None:
    """From now on packed layers have the LoRAs and hooks of whichever clone of this patcher is loaded."""
    patcher.add_callback_with_key(CallbacksMP.ON_LOAD, KEY, _followed)
    patcher.add_callback_with_key(CallbacksMP.ON_REGISTER_ALL_HOOK_PATCHES, KEY, _refuse_differences)
    patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram  # the other mode keeps merged matrices to write back


def _followed(patcher: Any, *loading: Any) -> None:
    for name, layer in packed_layers(patcher.model).items():
        layer.follow(patcher, f"{name}.weight")


def _refuse_differences(patcher: Any, *registering: Any) -> None:
    """Of a whole model as a LoRA: the host takes off the weights as they are stored."""
    names = {f"{name}.weight" for name in packed_layers(patcher.model)}
    hooked = (patches[key] for patches in patcher.hook_patches.values() for key in names & patches.keys())
    if any(
        patch[1][0] == "model_as_lora" for patches in hooked for patch in patches if type(patch[1]) is tuple
    ):
        raise WeightsError(
            "a model cannot be a hook LoRA on weights that stay packed, as those of GGUF files do. Load a "
            "bf16 or fp8 file, or hook a LoRA file."
        )


def packed_layers(network: torch.nn.Module) -> dict[str, PackedLinear]:
    """By their names in it."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, PackedLinear)}


def merged(state: dict[str, Any], network: torch.nn.Module) -> dict[str, Any]:
    """A state dict of `network` for a file: packed layers that LoRAs change become bfloat16 matrices."""
    changed = {name: layer for name, layer in packed_layers(network).items() if layer.changes}
    gone = {f"{name}.{end}" for name in changed for end in ("weight", MARKER, *COMPANIONS)}
    out = {key: value for key, value in state.items() if key not in gone}
    for name, layer in changed.items():
        matrix = layer.changed(layer.matrix(layer.weight, torch.float32))
        out[f"{name}.weight"] = matrix.to("cpu", torch.bfloat16)
    return out
