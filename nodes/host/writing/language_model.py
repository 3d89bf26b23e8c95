"""Text and choices from the language model in a loaded CLIP: Qwen3, whose embedding is its head.

Under the host's memory management, and in the precision that it was loaded in.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import comfy.model_management as memory
import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....zimage_core.config import Qwen3Config
from ....zimage_core.model.text_encoder import KeyValueCache, Qwen3TextEncoder
from ....zimage_core.prompt.faithful import letter_tokens
from ....zimage_core.prompt.messages import SMALLEST_INSTRUCTED, Message, as_chat
from ....zimage_core.prompt.writing import NextLogits, Sampling, TextStream, choose, generate, steps

# Qwen3's, which the tokenizer that the host has does not know under 0.3.75: it is Qwen2.5's.
THINKING = {"<think>": 151667, "</think>": 151668}
STOPS = ("<|im_end|>", "<|endoftext|>")
HEADROOM = 256 << 20  # bytes for activations
EXACT = (torch.float32, torch.float16)  # stored weights to compute in float32 with, where a CPU writes


class HostQwen3(Qwen3TextEncoder):
    """Our network over the modules of the host's own: its weights, casts and patches, and no copy of them."""

    def __init__(self, config: Qwen3Config, network: nn.Module) -> None:
        super().__init__(config, device="meta", language_model=True)
        for name, module in list(network.named_modules()):
            if not any(module.children()):
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, module)

    def embed(self, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
        return self.model.embed_tokens(input_ids, out_dtype=dtype).to(dtype)

    def head(self, hidden: Tensor) -> Tensor:
        embedding = self.model.embed_tokens
        weight, bias, stream = comfy.ops.cast_bias_weight(embedding, hidden, offloadable=True)
        scores = F.linear(hidden, weight)
        comfy.ops.uncast_bias_weight(embedding, weight, bias, stream)
        return scores


def host_steps(transformer: Any, capacity: int, device: torch.device, dtype: torch.dtype) -> NextLogits:
    """The host's own forward with its own cache, where it has them: it fetches offloaded layers ahead."""
    cache = transformer.init_kv_cache(1, capacity, device, dtype)

    def next_logits(ids: Tensor) -> Tensor:
        nonlocal cache
        embeds = transformer.model.embed_tokens(ids, out_dtype=dtype).to(dtype)
        hidden, _, cache = transformer.model(None, embeds=embeds, past_key_values=cache)
        return transformer.logits(hidden)[:, -1]

    return next_logits


class LanguageModel:
    """The Qwen3 in a CLIP. Raises ValueError where the CLIP has another text encoder."""

    def __init__(self, clip: Any) -> None:
        self.clip = clip
        stage = clip.cond_stage_model
        self.transformer = getattr(getattr(stage, getattr(stage, "clip", ""), None), "transformer", None)
        theirs = getattr(getattr(self.transformer, "model", None), "config", None)
        if getattr(theirs, "transformer_type", None) != "llama" or not getattr(theirs, "q_norm", None):
            raise ValueError(
                f"{type(stage).__name__} cannot write: the clip must be Z-Image's text encoder, Qwen3-4B. "
                "Or choose an endpoint as source."
            )
        self.config = Qwen3Config(
            **{name: getattr(theirs, name) for name in Qwen3Config.__dataclass_fields__}
        )
        self.tokenizer = getattr(clip.tokenizer, clip.tokenizer.clip).tokenizer
        self.instructed = self.config.vocab_size >= SMALLEST_INSTRUCTED
        self.thinking = THINKING if self.instructed else {}
        self.stops = {self.tokenizer.convert_tokens_to_ids(token) for token in STOPS}

    def encode(self, messages: list[Message], thinking: bool) -> list[int]:
        chat = as_chat(messages, thinking if self.instructed else None)
        pieces = re.split("(<think>|</think>)", chat) if self.thinking else [chat]
        ids = []
        for piece in pieces:
            named = self.thinking.get(piece)
            ids += self.tokenizer(piece)["input_ids"] if named is None else [named]
        return ids

    def write(
        self,
        messages: list[Message],
        sampling: Sampling,
        max_tokens: int,
        thinking: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> tuple[str, str, bool]:
        """Returns what was written, thinking included, a note of how much, and whether it came to its end.

        on_text hears all the text after each token; the host's interrupt ends it between two.
        """
        prompt = self.encode(messages, thinking)
        stream = TextStream(self.tokenizer, {token: name for name, token in self.thinking.items()})

        def on_token(token: int) -> None:
            memory.throw_exception_if_processing_interrupted()
            text = stream.add(token)
            if on_text is not None:
                on_text(text)

        with self.loaded(len(prompt) + max_tokens) as (next_logits, device):
            written = generate(next_logits, prompt, sampling, self.stops, max_tokens, on_token, device)
        note = f"{len(prompt)} tokens read, {len(written.tokens)} written"
        if not written.ended:
            note += f", cut off at max_tokens {max_tokens}"
        return stream.finish(), note, written.ended

    def choose(
        self,
        messages: list[Message],
        counts: Sequence[int],
        temperature: float,
        seed: int,
        on_choice: Callable[[list[int]], None] | None = None,
    ) -> tuple[list[int], str]:
        """Answers with one letter for each list of so many entries, at one token each.

        Returns the place of each in its list and a note of how much was read. on_choice hears the places so
        far; the host's interrupt ends it between two.
        """
        prompt, letters = self.encode(messages, thinking=False), letter_tokens(self.tokenizer)

        def heard(places: list[int]) -> None:
            memory.throw_exception_if_processing_interrupted()
            if on_choice is not None:
                on_choice(places)

        with self.loaded(len(prompt) + len(counts)) as (next_logits, device):
            allowed = [letters[:count] for count in counts]
            places = choose(next_logits, prompt, allowed, temperature, seed, heard, device)
        return places, f"{len(prompt)} tokens read, {len(places)} choices made"

    @contextlib.contextmanager
    def loaded(self, capacity: int) -> Iterator[tuple[NextLogits, torch.device]]:
        """The model on its device, with room for so many tokens."""
        device = self.clip.patcher.load_device
        dtype = self.dtype(device)
        head = self.config.vocab_size * self.config.hidden_size * dtype.itemsize
        needed = KeyValueCache.bytes_needed(self.config, capacity, dtype) + head + HEADROOM
        memory.load_models_gpu([self.clip.patcher], memory_required=needed)
        layers = self.transformer.model
        with contextlib.ExitStack() as around:
            around.enter_context(getattr(memory, "cuda_device_context", contextlib.nullcontext)(device))
            # what newer hosts do around their own writing
            if hasattr(comfy.ops, "use_quantized_matmul"):
                around.enter_context(comfy.ops.use_quantized_matmul(self.clip.cond_stage_model, device))
            before = getattr(layers, "prefetch_dynamic_vbars", False)
            around.callback(setattr, layers, "prefetch_dynamic_vbars", before)
            layers.prefetch_dynamic_vbars = True
            yield self.steps(capacity, device, dtype), device

    def dtype(self, device: torch.device) -> torch.dtype:
        """Of tokens and of what is kept of them; on a CPU the host converts other weights for each."""
        if device.type != "cpu":
            return torch.bfloat16 if memory.should_use_bf16(device) else torch.float32
        stored = self.transformer.model.embed_tokens.weight.dtype
        return torch.float32 if stored in EXACT else torch.bfloat16

    def steps(self, capacity: int, device: torch.device, dtype: torch.dtype) -> NextLogits:
        if device.type != "cpu" and hasattr(self.transformer, "init_kv_cache"):
            return host_steps(self.transformer, capacity, device, dtype)
        return steps(HostQwen3(self.config, self.transformer.model), capacity, device, dtype)
