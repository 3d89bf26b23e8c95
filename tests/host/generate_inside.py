"""Runs inside a ComfyUI's Python: text from the Qwen3 in a CLIP, against transformers on the same weights.

Writes one JSON line to standard output.

python tests/host/launch.py tests/host/generate_inside.py ComfyUI_FOLDER SCRATCH_FOLDER
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(sys.argv[1]).resolve()

sys.path.insert(0, str(ROOT))
import torch  # noqa: E402

from tests.core.random_models import randomise, seeds  # noqa: E402
from tests.core.test_text_encoder import peer_of  # noqa: E402
from tests.host.inside import enter, extension_module  # noqa: E402
from zimage_core import Qwen3Config, Qwen3TextEncoder  # noqa: E402

enter(HOST)
import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.text_encoders.z_image  # noqa: E402
from comfy.supported_models_base import ClipTarget  # noqa: E402

CONFIG = Qwen3Config(
    vocab_size=152_000, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip
COUNT = 16  # tokens
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a red fox"}]

LISTS = (12, 14, 9, 2, 16)  # entries to choose from

host_generate = extension_module("nodes.host.writing.language_model")
sampling = extension_module("zimage_core.prompt.writing").Sampling(temperature=0)
faithful = extension_module("zimage_core.prompt.faithful")


def clip_of(state: dict[str, torch.Tensor], stored: torch.dtype) -> comfy.sd.CLIP:
    """The host's CLIP of these sizes, its weights kept as `stored`."""
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads")  # fmt: skip
    z_image = comfy.text_encoders.z_image
    clip = comfy.sd.CLIP(
        ClipTarget(z_image.ZImageTokenizer, z_image.te(dtype_llama=stored)),
        parameters=1,
        model_options={"qwen3_4b_model_config": {name: getattr(CONFIG, name) for name in sizes}},
    )
    clip.load_sd(state)
    return clip


def owned(module: torch.nn.Module) -> dict[int, int]:
    """Storages and their bytes."""
    return {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in module.parameters()}


def best_letters(peer: torch.nn.Module, prompt: list[int], letters: list[int]) -> list[int]:
    """Which letter of each list transformers' scores are highest for, everything read anew each time."""
    ids, places = list(prompt), []
    for count in LISTS:
        places.append(int(peer(torch.tensor([ids])).logits[0, -1, letters[:count]].argmax()))
        ids.append(letters[places[-1]])
    return places


def compare(name: str, seed: int) -> dict:
    model = randomise(Qwen3TextEncoder(CONFIG, language_model=True), seed)
    state = {k: v.to(STORED[name]) for k, v in model.state_dict().items()}
    model.load_state_dict({k: v.float() for k, v in state.items()})
    peer = peer_of(model)
    clip = clip_of(state, STORED[name])
    writer = host_generate.LanguageModel(clip)
    prompt = writer.encode(MESSAGES, thinking=False)
    with torch.no_grad():
        answer = peer.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=COUNT, eos_token_id=None
        )
    theirs = answer[0, len(prompt) :].tolist()

    letters = faithful.letter_tokens(writer.tokenizer)
    best = best_letters(peer, prompt, letters)

    found, heard = {}, []
    comfy.model_management.load_models_gpu([clip.patcher])
    place = len(prompt) + COUNT, torch.device("cpu"), torch.float32
    shell = host_generate.HostQwen3(CONFIG, writer.transformer.model, torch.float32)
    lists = [letters[:count] for count in LISTS]
    for path, steps in (("chosen", writer.steps), ("shell", functools.partial(host_generate.steps, shell))):
        tokens = host_generate.generate(steps(*place), prompt, sampling, (), COUNT).tokens
        places = host_generate.choose(steps(*place), prompt, lists, temperature=0, seed=0)
        found[path] = tokens == theirs and places == best
    places, chosen_note = writer.choose(MESSAGES, LISTS, 0, 0, on_choice=lambda _: heard.append(None))
    found["asked by the node"] = places == best and len(heard) == len(LISTS)
    heard.clear()
    # Without stops of its own, so that the cap ends it.
    writer.stops = ()
    text, note = writer.write(MESSAGES, sampling, COUNT, on_text=heard.append)
    whole = owned(writer.transformer.model)
    return {
        "same": found,
        "foreign bytes": sum(size for at, size in owned(shell).items() if at not in whole),
        "shared bytes": sum(size for at, size in owned(shell).items() if at in whole),
        "bytes": sum(whole.values()),
        "text": text,
        "expected text": writer.tokenizer.decode(theirs, skip_special_tokens=True),
        "heard": len(heard),
        "note": note,
        "note of choices": chosen_note,
        "prompt": prompt,
    }


with torch.inference_mode():
    rows = {f"{name}, seed {seed}": compare(name, seed) for name, seed in zip(STORED, seeds(3), strict=True)}
sys.stdout.write(json.dumps(rows) + "\n")
