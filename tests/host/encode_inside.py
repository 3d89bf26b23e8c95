"""Runs inside a ComfyUI's Python: what ZImageTextEncode encodes, and how often, against transformers.

Writes one JSON line to standard output.

python tests/host/launch.py tests/host/encode_inside.py ComfyUI_FOLDER SCRATCH_FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HOST, SCRATCH = (Path(argument).resolve() for argument in sys.argv[1:3])
ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "models" / "nano"

sys.path.insert(0, str(ROOT))
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import Qwen2Tokenizer  # noqa: E402

from tests.core.random_models import relative  # noqa: E402
from tests.host.inside import enter, extension_module  # noqa: E402
from zimage_core.weights import load_text_encoder  # noqa: E402

enter(HOST)
import folder_paths  # noqa: E402

EMBEDDINGS = SCRATCH / "embeddings"
EMBEDDINGS.mkdir(exist_ok=True)
folder_paths.folder_names_and_paths["embeddings"] = ([str(EMBEDDINGS)], {".safetensors"})
nodes = extension_module("nodes.conditioning")
load_clip = extension_module("nodes.host.loading.clip").load_clip
Encode = nodes.ZImageTextEncode
nodes.show_text = lambda *_: None
Encode.hidden = type("Hidden", (), {"unique_id": None})

clip = load_clip(NANO / "text_encoder.safetensors")
tokenizer = Qwen2Tokenizer.from_pretrained(NANO / "tokenizer")
encoder = load_text_encoder(NANO / "text_encoder.safetensors", dtype=torch.float32)
WORDS = tokenizer(" red apple", add_special_tokens=False).input_ids
vectors = encoder.model.embed_tokens.weight[WORDS].detach().clone()
save_file({"emb_params": vectors}, EMBEDDINGS / "words.safetensors")
save_file({"emb_params": torch.randn(2, 768)}, EMBEDDINGS / "narrow.safetensors")


def run(text: str, clip=clip, **inputs) -> tuple[list, str]:
    """(the conditioning, what the node says)."""
    out = Encode.execute(clip, text, **inputs)
    return out.args[0], out.ui.as_dict()["text"][0]


def reference(text: str, longest: int | None = None) -> torch.Tensor:
    """Features of text that has its template, as the reference pipeline cuts it."""
    options = {"padding": "max_length", "max_length": longest, "truncation": True} if longest else {}
    found = tokenizer(text, return_tensors="pt", add_special_tokens=False, **options)
    with torch.no_grad():
        return encoder(found.input_ids)[:, found.attention_mask[0].bool()]


def chat(text: str, system: str = "") -> str:
    before = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{before}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def against(conditioning: list, wanted: torch.Tensor) -> float | str:
    found = conditioning[0][0]
    if found.shape != wanted.shape:
        return f"shape {tuple(found.shape)}, expected {tuple(wanted.shape)}"
    return relative(found, wanted)


def features() -> dict[str, float | str]:
    long = "a red fox in fresh snow, " * 120
    custom = "Draw this: {prompt}. {style}"
    return {
        "plain": against(run("a red fox")[0], reference(chat("a red fox"))),
        "cut at 512": against(run(long, max_tokens=512)[0], reference(chat(long), 512)),
        "not cut": against(run(long)[0], reference(chat(long))),
        "short, cut at 512": against(run("an owl", max_tokens=512)[0], reference(chat("an owl"), 512)),
        "system prompt": against(
            run("an {owl}", system_prompt="Paint {it}.")[0], reference(chat("an {owl}", "Paint {it}."))
        ),
        "template": against(
            run("an owl", template=custom)[0], reference("Draw this: an owl. {style}")
        ),
    }  # fmt: skip


def batch() -> dict[str, float]:
    """A batch against single prompts, its padding left out."""
    prompts = ["an owl", "a red fox in fresh snow on a white background, very large", "a cat"]
    found, _ = run("\n".join(prompts), batch=True)
    features, mask = found[0][0], found[0][1]["attention_mask"].bool()
    return {p: relative(features[i][mask[i]], run(p)[0][0][0][0]) for i, p in enumerate(prompts)}


def embedding() -> dict:
    """A textual inversion made of the vectors of words acts like these words in its place."""
    found, note = run("a fox, embedding:words on white, embedding:words")
    ids = clip.tokenize("a fox, embedding:words on white, embedding:words ")["qwen3_4b"][0]
    spelled = iter(2 * WORDS)
    ids = [next(spelled) if torch.is_tensor(token) else token for token, _ in ids]
    with torch.no_grad():
        wanted = encoder(torch.tensor([ids]))
    return {
        "distance": against(found, wanted),
        "text": " ".join(tokenizer.decode(ids).split()),
        "note": note,
        "unusable": run("a fox, embedding:gone, embedding:narrow\n(big:1.2) \\(small:1.2\\) (16:9)")[1],
    }


def encodings() -> dict[str, int]:
    """How many encodings each step takes, and that none is a stale one."""
    calls = []
    model = clip.cond_stage_model
    encode = model.encode_token_weights
    model.encode_token_weights = lambda tokens: calls.append(1) or encode(tokens)
    found = {}

    def step(name: str, *args, **inputs) -> torch.Tensor:
        calls.clear()
        features = run(*args, **inputs)[0][0][0]
        found[name] = len(calls)
        return features

    first = step("a new prompt", "a blue whale")
    step("another node, the same prompt", "a blue whale")
    step("four prompts", "a\nb\nc\nd", batch=True)
    step("one of four changed", "a\nb\nx\nd", batch=True)
    step("another template", "a blue whale", template="{prompt}!")
    weights = {k: torch.randn_like(v) for k, v in clip.patcher.model_state_dict().items() if "q_proj" in k}
    patched = clip.clone()
    patched.add_patches({key: ("diff", (weight,)) for key, weight in weights.items()}, 0.5)
    other = step("patched", "a blue whale", patched)
    step("patched, again", "a blue whale", patched)
    again = step("without the patch", "a blue whale")
    found["stale"] = int(relative(first, other) < 0.01 or not torch.equal(first, again))
    step("fills the room", "fish " * 9000)
    step("after that", "a blue whale")
    return found


distances = features()
sys.stdout.write(
    json.dumps({"distances": distances, "batch": batch(), "embedding": embedding(), "encodings": encodings()})
    + "\n"
)
