"""A text encoder file -> the host's CLIP: its own Qwen3 class, at any size."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.z_image
import folder_paths
import torch
from comfy.supported_models_base import ClipTarget

from ....zimage_core.config import Qwen3Config
from ....zimage_core.weights import Checkpoint, WeightsError, read_text_encoder
from ..built_in import NANO
from ..running.packed import follow_loras, pack
from .mapped import mapped
from .quantised import APART, host_layers, markers, placed

NANO_TOKENIZER = NANO / "tokenizer"
VOCABULARY, TOKENS = Qwen3Config().vocab_size, 151_669  # rows of the embedding, and those that tokens have


def load_clip(path: Path) -> Any:
    """The host's CLIP. Raises WeightsError when the file is no Qwen3 of a known Z-Image."""
    checkpoint = read_text_encoder(mapped(path))
    logging.info("Z-Image text encoder: %s", checkpoint.summary)
    c = checkpoint.config
    if replace(c, vocab_size=VOCABULARY) == Qwen3Config():
        if c.vocab_size < TOKENS:
            raise WeightsError(
                f"{path.name} is a Qwen3-4B with {c.vocab_size} tokens, and its tokenizer has {TOKENS}: "
                "choose the original (qwen_3_4b.safetensors)."
            )
        return _load_qwen3_4b(path, checkpoint)
    if path.parent != NANO:
        raise WeightsError(
            f"{path.name} is a Qwen3 of {c.num_hidden_layers} layers, {c.hidden_size} wide; "
            "Z-Image needs Qwen3-4B: 36 layers, 2560 wide (qwen_3_4b.safetensors)."
        )
    return _load_small(checkpoint)


def _load_qwen3_4b(path: Path, checkpoint: Checkpoint) -> Any:
    embeddings = folder_paths.get_folder_paths("embeddings")
    options = {"embedding_directory": embeddings, "clip_type": comfy.sd.CLIPType.LUMINA2}
    if placed(checkpoint).packed or checkpoint.config.vocab_size != VOCABULARY:
        clip = packed_clip(checkpoint)
        clip.patcher.cached_patcher_init = (load_packed_patcher, (path,))
    elif path.is_dir() or checkpoint.prefix or checkpoint.formats:
        clip = comfy.sd.load_text_encoder_state_dicts([encoder_state(checkpoint)], **options)
    else:
        clip = comfy.sd.load_clip([str(path)], **options)
    clip.tokenizer.qwen3_4b.embedding_directory = embeddings  # 0.3.75 leaves it out
    return clip


def encoder_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """A text encoder's state dict as the host's loader takes it, with what says how layers are stored."""
    state, kept = host_layers(checkpoint)
    if kept.host and APART:
        return state | {"_quantization_metadata": json.dumps({"layers": kept.host})}
    return state | markers(kept.host)


def load_packed_patcher(path: Path, disable_dynamic: bool = False) -> Any:
    """What newer hosts call to have the weights of `packed_clip` a second time."""
    options = {"disable_dynamic": True} if disable_dynamic else {}
    return packed_clip(read_text_encoder(mapped(path)), **options).patcher


def packed_clip(
    checkpoint: Checkpoint,
    tokenizer: Any = comfy.text_encoders.z_image.ZImageTokenizer,
    tokenizer_data: dict = {},
    sizes: dict = {},
    **options: Any,
) -> Any:
    """The host's CLIP with packed layers, those too that the host would run itself.

    sizes: where they are not Qwen3-4B's. options: of the host's class.
    """
    state, kept = host_layers(checkpoint)
    resized = {"vocab_size": checkpoint.config.vocab_size, **sizes}
    layers = {layer: checkpoint.formats[layer] for layer in kept.host | kept.packed}
    offload = management.text_encoder_offload_device()
    clip = comfy.sd.CLIP(
        ClipTarget(tokenizer, comfy.text_encoders.z_image.te(dtype_llama=checkpoint.dtype)),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=checkpoint.parameters,
        tokenizer_data=tokenizer_data,
        model_options={"initial_device": offload, "qwen3_4b_model_config": resized},
        **options,
    )
    pack(clip.cond_stage_model.qwen3_4b.transformer, layers, offload)
    follow_loras(clip.patcher)
    missing, _ = clip.load_sd(state | markers(layers))
    if missing:
        logging.warning("Z-Image text encoder lacks %s", missing)
    return clip


class NanoTokens(comfy.sd1_clip.SDTokenizer):
    """The host's tokenizer wrapper around the small vocabulary."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict = {}) -> None:
        from transformers import Qwen2Tokenizer

        super().__init__(
            str(NANO_TOKENIZER),
            pad_with_end=False,
            embedding_directory=embedding_directory,
            embedding_size=tokenizer_data["nano_width"],
            embedding_key="qwen3_4b",
            tokenizer_class=Qwen2Tokenizer,
            has_start_token=False,
            has_end_token=False,
            pad_to_max_length=False,
            max_length=99999999,
            min_length=1,
            tokenizer_data=tokenizer_data,
        )
        self.pad_token = self.tokenizer.pad_token_id


class NanoTokenizer(comfy.text_encoders.z_image.ZImageTokenizer):
    """The host's Z-Image template over the small vocabulary."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict = {}) -> None:
        super().__init__(embedding_directory, tokenizer_data)
        self.qwen3_4b = NanoTokens(embedding_directory, tokenizer_data)


def _load_small(checkpoint: Checkpoint) -> Any:
    c = checkpoint.config
    target = ClipTarget(NanoTokenizer, comfy.text_encoders.z_image.te(dtype_llama=torch.float32))
    state = checkpoint.plain()
    sizes = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
    }
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=checkpoint.parameters,
        tokenizer_data={"nano_width": c.hidden_size},
        model_options={"qwen3_4b_model_config": sizes},
    )
    clip.load_sd(state)
    return clip
