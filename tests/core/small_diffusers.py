"""Small random parts of a pipeline, as diffusers and transformers hold them."""

from __future__ import annotations

from diffusers import AutoencoderKL
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from tests.core.random_models import randomise

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def small_parts() -> tuple[Qwen3Model, Qwen2Tokenizer, AutoencoderKL]:
    vocab = {token: i for i, token in enumerate([*sorted(ByteLevel.alphabet()), *SPECIAL])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], additional_special_tokens=SPECIAL[1:])
    tokenizer.chat_template = CHAT_TEMPLATE
    text_encoder = randomise(
        Qwen3Model(
            Qwen3Config(
                vocab_size=len(vocab), hidden_size=128, intermediate_size=256, num_hidden_layers=3,
                num_attention_heads=2, num_key_value_heads=1, head_dim=64, tie_word_embeddings=True,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            )
        ),
        1,
    )  # fmt: skip
    vae = randomise(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 32, 64, 64), layers_per_block=1, latent_channels=16, norm_num_groups=32,
            scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
        ),
        2,
    )  # fmt: skip
    return text_encoder, tokenizer, vae
