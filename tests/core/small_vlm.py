"""A vision-language model of the transformers library with random weights, saved as a user would have it."""

from __future__ import annotations

from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def save(folder: Path, dtype: torch.dtype) -> None:
    """LLaVA, 32 wide, with the nano model's tokenizer."""
    import transformers as t

    tokenizer = t.AutoTokenizer.from_pretrained(ROOT / "models" / "nano" / "tokenizer")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**shape, image_size=32, patch_size=8),
        text_config=t.Qwen2Config(**shape, vocab_size=len(tokenizer), num_key_value_heads=2),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    side = {"height": 32, "width": 32}
    processor = t.LlavaProcessor(
        t.CLIPImageProcessor(size=side, crop_size=side),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    t.LlavaForConditionalGeneration(config).to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
