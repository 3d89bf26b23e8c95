"""What ZImageTextEncode encodes, against transformers' tokens through our encoder, and how often."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import folder_paths
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen2Tokenizer

from tests.core.random_models import relative
from tests.host.inside import ROOT, extension_module
from zimage_core.weights import load_text_encoder

NANO = ROOT / "models" / "nano"
nodes = extension_module("nodes.conditioning")
load_clip = extension_module("nodes.host.loading.clip").load_clip
TOKENIZER = Qwen2Tokenizer.from_pretrained(NANO / "tokenizer")
ENCODER = load_text_encoder(NANO / "text_encoder.safetensors", dtype=torch.float32)
WORDS = TOKENIZER(" red apple", add_special_tokens=False).input_ids
LONG = "a red fox in fresh snow, " * 120


@pytest.fixture(autouse=True, scope="module")
def as_a_node(scratch: Path) -> Iterator[None]:
    """The node without a page, and a folder of embeddings."""
    vectors = ENCODER.model.embed_tokens.weight[WORDS].detach().clone()
    save_file({"emb_params": vectors}, scratch / "words.safetensors")
    save_file({"emb_params": torch.randn(2, 768)}, scratch / "narrow.safetensors")
    hidden = type("Hidden", (), {"unique_id": None})
    with pytest.MonkeyPatch.context() as patch:
        embeddings = ([str(scratch)], {".safetensors"})
        patch.setitem(folder_paths.folder_names_and_paths, "embeddings", embeddings)
        patch.setattr(nodes, "show_text", lambda *_: None)
        patch.setattr(nodes.ZImageTextEncode, "hidden", hidden, raising=False)
        yield


@pytest.fixture(scope="module")
def clip(as_a_node):
    return load_clip(NANO / "text_encoder.safetensors")


def encoded(clip, text: str, **inputs) -> tuple[list, str]:
    """(the conditioning, what the node says)."""
    out = nodes.ZImageTextEncode.execute(clip, text, **inputs)
    return out.args[0], out.ui.as_dict()["text"][0]


def reference(text: str, longest: int | None = None) -> Tensor:
    """Features of text that has its template, as the reference pipeline cuts it."""
    options = {"padding": "max_length", "max_length": longest, "truncation": True} if longest else {}
    tokens = TOKENIZER(text, return_tensors="pt", add_special_tokens=False, **options)
    return ENCODER(tokens.input_ids)[:, tokens.attention_mask[0].bool()]


def chat(text: str, system: str = "") -> str:
    before = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{before}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


FEATURES = {  # the prompt and inputs; the text with its template, and where the reference cuts it
    "plain": ("a red fox", {}, (chat("a red fox"),)),
    "cut at 512": (LONG, {"max_tokens": 512}, (chat(LONG), 512)),
    "not cut": (LONG, {}, (chat(LONG),)),
    "short, cut at 512": ("an owl", {"max_tokens": 512}, (chat("an owl"), 512)),
    "system prompt": ("an {owl}", {"system_prompt": "Paint {it}."}, (chat("an {owl}", "Paint {it}."),)),
    "template": ("an owl", {"template": "Draw this: {prompt}. {style}"}, ("Draw this: an owl. {style}",)),
}


@pytest.mark.parametrize("case", FEATURES)
def test_features_equal_transformers_tokens_through_our_encoder(clip, case: str) -> None:
    prompt, inputs, expected = FEATURES[case]
    features, wanted = encoded(clip, prompt, **inputs)[0][0][0], reference(*expected)
    assert features.shape == wanted.shape
    assert relative(features, wanted) < 1e-5


def test_a_batch_holds_what_single_prompts_give(clip) -> None:
    """Its padding left out."""
    texts = ["an owl", "a red fox in fresh snow on a white background, very large", "a cat"]
    ((features, values),), _ = encoded(clip, "\n".join(texts), batch=True)
    mask = values["attention_mask"].bool()
    for i, text in enumerate(texts):
        assert torch.equal(features[i][mask[i]], encoded(clip, text)[0][0][0][0])


def test_an_embedding_acts_like_the_words_it_is_made_of(clip) -> None:
    text = "a fox, embedding:words on white, embedding:words"
    found, note = encoded(clip, text)
    spelled = iter(2 * WORDS)
    tokens = clip.tokenize(f"{text} ")["qwen3_4b"][0]
    ids = [next(spelled) if torch.is_tensor(token) else token for token, _ in tokens]
    assert " ".join(TOKENIZER.decode(ids).split()).count("red apple") == 2
    assert relative(found[0][0], ENCODER(torch.tensor([ids]))) < 1e-5
    assert "embedding" not in note


def test_what_has_no_effect_is_named(clip) -> None:
    _, said = encoded(clip, "a fox, embedding:gone, embedding:narrow\n(big:1.2) \\(small:1.2\\) (16:9)")
    assert "embedding:gone" in said and "embedding:narrow" in said and "768" in said
    assert "(big:1.2)" in said and "small" not in said and "16:9" not in said


def test_syntax_of_other_programs_is_named_as_text(clip) -> None:
    text = "a fox <lora:style:0.8> BREAK an __animal__, <3, break"
    notes = encoded(clip, text)[1].splitlines()
    named = [note.split(" ")[0] for note in notes if "read as text" in note]
    assert named == ["<lora:style:0.8>", "__animal__", "BREAK"]
    assert "Z-Image LoRA Loader" in next(note for note in notes if note.startswith("<lora"))
    assert not any("read as text" in note for note in encoded(clip, "a fox, <3, break")[1].splitlines())


def test_lines_that_end_as_on_windows_are_the_same_text(clip) -> None:
    for inputs in ({}, {"system_prompt": "Paint\r\nit."}, {"template": "{prompt}\r\nend"}):
        plain = {name: value.replace("\r", "") for name, value in inputs.items()}
        windows, unix = (
            encoded(clip, text, **given)[0]
            for text, given in (("a fox\r\nat night", inputs), ("a fox\nat night", plain))
        )
        assert torch.equal(windows[0][0], unix[0][0])
    assert len(encoded(clip, "a fox\r\nat night\r\n---\r\na cat", batch=True)[0][0][0]) == 2


def test_words_that_the_built_in_model_never_read_are_named(clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another text encoder nothing is said: it has read everything."""
    prompt = "a fox in a red dress on the moon, cinematic, bokeh, 35mm, kodak, f8, portra, dusk"
    (note,) = (line for line in encoded(clip, prompt)[1].splitlines() if "nano does not know" in line)
    assert "know dress, cinematic, bokeh, 35mm, kodak, f8 and 2 more" in note
    assert "127 things, models/nano/README.md" in note
    assert "nano" not in encoded(clip, "a fox on a yellow background")[1]
    monkeypatch.setattr(nodes.encodings, "NanoTokenizer", ())
    assert "nano" not in encoded(clip, prompt)[1]


def test_a_long_prompt_is_said_to_take_time_and_how_to_cut_it(clip) -> None:
    assert "max_tokens 512 cuts them" in encoded(clip, LONG)[1]
    assert "max_tokens 512 cuts" not in encoded(clip, "a fox")[1]


def test_nothing_is_encoded_twice_and_nothing_is_stale(clip, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, model = [], clip.cond_stage_model
    encode = model.encode_token_weights
    monkeypatch.setattr(model, "encode_token_weights", lambda tokens: calls.append(1) or encode(tokens))

    def step(text: str, count: int, clip=clip, **inputs) -> Tensor:
        """The features; `count` encodings make them."""
        calls.clear()
        features = encoded(clip, text, **inputs)[0][0][0]
        assert len(calls) == count
        return features

    first = step("a blue whale", 1)
    step("a blue whale", 0)  # of another node
    step("a\nb\nc\nd", 4, batch=True)
    step("a\nb\nx\nd", 1, batch=True)
    step("a blue whale", 1, template="{prompt}!")
    weights = {k: torch.randn_like(v) for k, v in clip.patcher.model_state_dict().items() if "q_proj" in k}
    patched = clip.clone()
    patched.add_patches({key: ("diff", (weight,)) for key, weight in weights.items()}, 0.5)
    other = step("a blue whale", 1, patched)
    step("a blue whale", 0, patched)
    again = step("a blue whale", 0)
    assert relative(first, other) >= 0.01 and torch.equal(first, again)
    step("fish " * 9000, 1)  # fills the room for what is kept
    step("a blue whale", 1)
