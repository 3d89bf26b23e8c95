"""The training code at toy size: it learns, resumes exactly, and never shows what is held out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.core.random_models import random_s3dit, seeds
from tests.long import LONG
from zimage_core import AutoencoderKL, Qwen3TextEncoder, S3DiT
from zimage_core.config import AutoencoderConfig, NanoConfig, Qwen3Config, S3DiTConfig, VisionConfig
from zimage_core.model.vision import VisionEncoder
from zimage_core.prompt.template import apply_template, load_tokenizer
from zimage_core.train.lora import Settings
from zimage_core.train.nano import autoencoder, export, lora, text, tokenizer, transformer, vision
from zimage_core.train.nano.captions import (
    CaptionSet,
    Concept,
    fill,
    held_out_captions,
    held_out_colour,
    keyword_examples,
    other_keywords,
    with_article,
    writing_examples,
)
from zimage_core.train.nano.edits import KINDS, Edits, held_out_couple, held_out_paints, trained_pairs
from zimage_core.train.nano.muon import orthogonalise
from zimage_core.train.nano.pictures import (
    SIZE,
    SMALL,
    SMALL_BOX,
    colours,
    concept_codes,
    is_held_out,
    on_background,
    with_small,
)
from zimage_core.train.plan import Plan
from zimage_core.weights import load_transformer

CONCEPTS = [
    Concept("1f98a", {"en": ("fox",), "zh": ("\u72d0\u72f8",)}, {"en": ("animal",), "zh": ("\u52a8\u7269",)}),
    Concept("1f34e", {"en": ("red apple", "apple"), "zh": ("\u7ea2\u82f9\u679c", "\u82f9\u679c")}, {}),
    Concept("1f989", {"en": ("owl",), "zh": ("\u732b\u5934\u9e70",)}, {}),
    Concept("1f34f", {"en": ("green apple",), "zh": ("\u9752\u82f9\u679c",)}, {}),
]
PLAN = Plan(steps=12, lr=2e-3, warmup=2, cooldown=0.5, ema=0.9)
TINY_DIT = S3DiTConfig(
    dim=128, n_layers=1, n_refiner_layers=1, n_heads=1, ffn_dim=64, cap_feat_dim=64, t_hidden=32
)
TINY_OMNI = dataclasses.replace(TINY_DIT, siglip_feat_dim=8)
TINY_VISION = VisionConfig(
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    patch_size=8,
    max_num_patches=4,
)
TINY_TEXT = Qwen3Config(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
)
TINY_AE = AutoencoderConfig(ch=64, ch_mult=(1, 1, 1, 1), num_res_blocks=1)


def in_one_process_and_in_shards(test):
    """`workers` of a training: both counts with --long, else the one that the seed says."""
    (seed,) = seeds(1)
    return pytest.mark.sampled(pytest.mark.parametrize("workers", [1, 2] if LONG else [1 + seed % 2])(test))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Toy sizes are quicker so, and the shards bring their own threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """A tokenizer learned from the toy captions, loaded as the library loads it."""
    lines = [pair.caption for pair in CaptionSet(CONCEPTS).all()] + ["user\n", "assistant\n"] * 20
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train_tokenizer(lines, TINY_TEXT.vocab_size, folder)
    return load_tokenizer(folder)


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def check_training(train, evaluate, tmp_path, plan=PLAN) -> None:
    """Losses fall, and a run stopped half-way and resumed ends with the weights of one that was not."""
    before = evaluate(train(dataclasses.replace(plan, lr=0.0), tmp_path / "still", None))
    whole = train(plan, tmp_path / "whole", None)
    assert evaluate(whole) < before
    train(plan, tmp_path / "parts", plan.steps // 2)
    assert same_weights(train(plan, tmp_path / "parts", None), whole)


@in_one_process_and_in_shards
def test_autoencoder_learns_and_resumes(tmp_path, workers):
    drawings = torch.randint(
        0, 255, (4, 32, 32, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    drawings[..., 3] = 255
    images = on_background(drawings, colours()[0].pixel)

    def train(plan, state, stop_at):
        return autoencoder.train(TINY_AE, drawings, state, plan, 2, workers=workers, stop_at=stop_at)

    plan = dataclasses.replace(PLAN, optimizer="muon", ema=0.5)
    check_training(train, lambda model: -float(autoencoder.psnr(model, images).mean()), tmp_path, plan)


@in_one_process_and_in_shards
def test_text_encoder_learns_and_resumes(tmp_path, bpe, workers):
    groups = [text.encode(bpe, [text.plain(pair.caption) for pair in CaptionSet(CONCEPTS).all()])]

    def train(plan, state, stop_at):
        return text.train(TINY_TEXT, groups, state, plan, 4, workers=workers, stop_at=stop_at)

    check_training(train, lambda model: text.perplexity(model, groups[0][:32]), tmp_path)


def test_writing_leaves_the_features_as_they_are(tmp_path, bpe):
    groups = [text.encode(bpe, [text.plain(pair.caption) for pair in CaptionSet(CONCEPTS).all()])]
    before = Qwen3TextEncoder(TINY_TEXT, language_model=True)
    text.initialise(before)
    after = text.train(
        TINY_TEXT, groups, tmp_path / "w", Plan(30, 1e-2, 1), 8, start=before.state_dict(), features=False
    )
    assert text.perplexity(after, groups[0][:32]) < 0.8 * text.perplexity(before, groups[0][:32])
    ids = groups[0][:8].clamp(min=0)
    assert torch.equal(after(ids), before(ids))


class ToyVelocity:
    """Latents of one value per concept, an untrained text encoder, and a model's loss on one of them."""

    def __init__(self, bpe):
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(len(CONCEPTS), 1, 16, 1, 1, generator=generator).expand(
            -1, len(colours()), -1, 4, 4
        )
        features = torch.randn(len(CONCEPTS), len(colours()), 2, 2, 8, generator=generator)
        pairs = trained_pairs(CONCEPTS, 6)
        self.gallery = transformer.Gallery(latents, features, pairs, latents[:1, 0].expand(6, -1, -1, -1))
        self.encoder = Qwen3TextEncoder(TINY_TEXT, language_model=True)
        text.initialise(self.encoder)
        language = self.encoder, bpe
        self.edits = Edits(CONCEPTS, pairs)
        self.captions = transformer.FromCaptions(self.gallery, CaptionSet(CONCEPTS), *language, 4, self.edits)
        self.references = transformer.FromReference(self.gallery, self.edits, *language, 4)
        ids = torch.tensor([bpe(apply_template("fox on white"))["input_ids"]])
        noise = torch.randn(1, 16, 4, 4, generator=generator)
        self.case = (
            torch.lerp(latents[0, :1], noise, 0.7),
            torch.full((1,), 0.7),
            noise - latents[0, :1],
            torch.ones(1, 1, 4, 4),
            ids,
            torch.ones_like(ids, dtype=torch.bool),
        )

    @torch.no_grad()
    def loss(self, model) -> float:
        return float(transformer.velocity_loss(self.encoder, *self.case, model))


@in_one_process_and_in_shards
def test_transformer_learns_and_resumes(tmp_path, bpe, workers):
    toy = ToyVelocity(bpe)

    def train(plan, state, stop_at):
        tasks = [toy.captions]
        return transformer.train(TINY_DIT, tasks, state, plan, workers=workers, stop_at=stop_at)

    plan = dataclasses.replace(PLAN, optimizer="muon", ema=0.5)
    check_training(train, toy.loss, tmp_path, plan)


@in_one_process_and_in_shards
def test_editing_learns_beside_captions_and_resumes(tmp_path, bpe, workers):
    toy = ToyVelocity(bpe)

    def train(plan, state, stop_at):
        return transformer.train(
            TINY_OMNI, [toy.captions, toy.references], state, plan, workers=workers, stop_at=stop_at
        )

    @torch.no_grad()
    def loss(model) -> float:
        generator = torch.Generator().manual_seed(5)
        parts = [toy.references.losses(0, generator, 1, torch.device("cpu"))[0] for _ in range(8)]
        return float(transformer.mean_loss(parts, model))

    check_training(train, loss, tmp_path, dataclasses.replace(PLAN, steps=24, optimizer="muon", ema=0.5))


def test_vision_encoder_learns_and_resumes(tmp_path, bpe):
    """Pictures and their captions are told from pictures and other captions."""
    encoder = Qwen3TextEncoder(TINY_TEXT, language_model=True)
    text.initialise(encoder)
    drawings = torch.full((len(CONCEPTS), 32, 32, 4), 255, dtype=torch.uint8)
    drawings[..., :3] = torch.tensor([[250, 120, 20], [230, 20, 40], [90, 60, 40], [90, 200, 40]])[
        :, None, None
    ]
    drawings[:, :8] = 0  # a strip of background
    pixels = [on_background(drawings, colours()[i].pixel) for i in (0, 5)]

    def train(plan, state, stop_at):
        captions = CaptionSet(CONCEPTS)
        return vision.train(TINY_VISION, drawings, captions, encoder, bpe, state, plan, 8, stop_at=stop_at)

    wanted = [pair.caption for rows in CaptionSet(CONCEPTS).bare for pair in rows[:1]]
    captions = vision.caption_vectors(encoder, bpe, wanted)

    @torch.no_grad()
    def loss(model) -> float:
        same = torch.eye(len(CONCEPTS), dtype=torch.bool)
        return sum(float(model.loss(vision.to_images(p), captions, same)) for p in pixels)

    check_training(train, loss, tmp_path, dataclasses.replace(PLAN, steps=24, ema=0.5))


def test_lora_learns_beside_frozen_weights_and_resumes(tmp_path, bpe):
    """The file's tensors, added to the untouched weights by their names, make the better model."""
    toy = ToyVelocity(bpe)

    def train(plan, state, stop_at):
        base = random_s3dit(TINY_DIT, seed=0)
        weights = lora.train(base, toy.captions, state, plan, Settings(rank=2), stop_at=stop_at)
        merged = random_s3dit(TINY_DIT, seed=0)
        ends = {name.rpartition(".lora_")[0] for name in weights if ".lora_" in name}
        assert len(ends) == TINY_DIT.n_layers * 5
        assert len(weights) == 3 * len(ends)
        for name in ends:
            assert name.startswith("diffusion_model.layers.")
            down, up = (weights[f"{name}.lora_{side}.weight"].float() for side in ("down", "up"))
            merged.get_parameter(name.removeprefix("diffusion_model.") + ".weight").data += up @ down
        return merged

    check_training(train, toy.loss, tmp_path, dataclasses.replace(PLAN, lr=2e-2, ema=0.5))


def test_greyscale_keeps_grey_and_takes_colour_out():
    colourful = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    grey = lora.greyscale(colourful)
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])
    assert torch.allclose(lora.greyscale(grey), grey, atol=1e-6)


def test_held_out_pairs_and_phrasings_are_never_drawn(bpe):
    captions = CaptionSet(CONCEPTS)
    unseen = {pair.caption for pair in held_out_captions(CONCEPTS)}
    forbidden = {
        fill(template, name, colours()[held_out_colour(index)], language)
        for index, concept in enumerate(CONCEPTS)
        for language in ("en", "zh")
        for name in concept.names[language]
        for template in ("{thing} on a {colour} background", "{name} {colour}", "{colour} {name}")
    }
    generator = torch.Generator().manual_seed(0)
    for _ in range(3000):
        pair, colour = captions.draw(generator)
        assert colour != held_out_colour(pair.concept)
        assert colour in pair.fits
        assert pair.caption not in unseen and pair.caption not in forbidden
    for long in (False, True):
        prompts, pictures = transformer.draw_batch(captions, None, bpe, 50, long, generator)
        assert not unseen & {part for prompt in prompts for part in prompt.split("; ")}
        assert all(picture.colour != held_out_colour(picture.concept) for picture in pictures)
        lengths = {-(-transformer.token_count(bpe, prompt) // transformer.BUCKET) for prompt in prompts}
        assert lengths == {2 if long else 1}
    assert not unseen & {pair.caption for pair in captions.all()}
    read = [short for short, _ in writing_examples(CONCEPTS)] + [
        full for _, full in writing_examples(CONCEPTS)
    ]
    assert not (unseen | forbidden) & set(read)


def test_held_out_edits_are_never_drawn():
    """Neither the pairs of pictures, nor backgrounds that a thing was never shown on."""
    names = [f"thing {i}" for i in range(12)]
    codes = ["1f34e", "1f34f", "2764", "1f9e1", "1f49b", "1f49a", *(f"{i:x}" for i in range(6))]
    concepts = [Concept(c, {"en": (n,), "zh": (n,)}, {}) for c, n in zip(codes, names, strict=True)]
    edits, generator = Edits(concepts), torch.Generator().manual_seed(0)
    heart = [2, 3, 4, 5]
    for kind in KINDS:
        for held_out in (False, True):
            for _ in range(200):
                edit = edits.draw(kind, generator, held_out)
                before, after = edit.before, edit.after
                assert before.colour != held_out_colour(before.concept) and before != after
                unseen = after.colour == held_out_colour(after.concept)
                if kind == "swap":
                    unseen |= held_out_couple(before.concept, after.concept)
                elif kind == "add":
                    unseen |= held_out_couple(before.concept, after.second)
                elif kind == "recolour" and before.concept in heart:
                    unseen |= held_out_paints(heart.index(before.concept), heart.index(after.concept))
                assert unseen == held_out, edit
    assert all(
        picture.colour != held_out_colour(picture.concept)
        and not held_out_couple(picture.concept, picture.second)
        for picture in trained_pairs(concepts, 200)
    )


def test_a_second_thing_is_drawn_over_the_corner():
    first = torch.zeros(1, SIZE, SIZE, 4, dtype=torch.uint8)
    second = torch.full((1, SIZE, SIZE, 4), 255, dtype=torch.uint8)
    both = with_small(first, second)
    assert torch.equal(both[:, SMALL_BOX, SMALL_BOX], torch.full_like(both[:, SMALL_BOX, SMALL_BOX], 255))
    assert int(both.long().sum()) == 255 * 4 * SMALL**2 and SMALL_BOX.stop < SIZE


def test_other_keywords_are_in_no_caption_and_belong_to_one_thing():
    concepts = [
        Concept("1", {"en": ("fox",), "zh": ("a",)}, {"en": ("fox", "animal", "sly", "picture book")}),
        Concept("2", {"en": ("owl",), "zh": ("b",)}, {"en": ("animal", "wise")}),
    ]
    assert [row["en"] for row in other_keywords(concepts)] == [("sly",), ("wise",)]
    prompts = keyword_examples(concepts)
    assert {answer.split(" in the ")[0] for words, answer in prompts if "wise" in words} == {
        "A 3D illustration of an owl"
    }
    assert not any(colours()[held_out_colour(0)].en in words for words, _ in prompts if "sly" in words)


def test_every_colour_is_held_out_for_some_concept():
    assert len(concept_codes()) >= 100 and len(set(concept_codes())) == len(concept_codes())
    assert len(colours()) >= 4
    assert {held_out_colour(i) for i in range(len(concept_codes()))} == set(range(len(colours())))


def test_variants_of_one_drawing_are_held_out_together():
    stems = [f"{code:x}" for code in range(0x1F400, 0x1F500)]
    out = [stem for stem in stems if is_held_out(stem, set())]
    assert 10 <= len(out) <= 45
    assert all(is_held_out(f"{stem}-1f3fb", set()) for stem in out)
    assert not any(is_held_out(stem, {stem}) for stem in out)


def test_tokenizer_is_qwen2_and_keeps_every_text(bpe):
    from transformers import Qwen2Tokenizer

    same = Qwen2Tokenizer.from_pretrained(bpe.name_or_path)
    for prompt in (
        "a fox on a white background",
        "\u767d\u8272\u80cc\u666f\u4e0a\u7684\u72d0\u72f8",
        "\u00fc \U0001f98a \u0416",
    ):
        ids = bpe(prompt)["input_ids"]
        assert bpe.decode(ids) == prompt
        assert same(prompt)["input_ids"] == ids
    assert len(bpe) == TINY_TEXT.vocab_size
    assert bpe.convert_tokens_to_ids(list(tokenizer.SPECIAL_TOKENS)) == list(range(505, 512))
    assert bpe.pad_token == "<|endoftext|>"
    assert max(bpe("<|im_end|>")["input_ids"]) == bpe.convert_tokens_to_ids("<|im_end|>")


def test_articles():
    assert [with_article(n) for n in ("fox", "owl", "unicorn", "glasses")] == [
        "a fox",
        "an owl",
        "a unicorn",
        "glasses",
    ]


def test_orthogonalise_brings_singular_values_near_one():
    matrix = torch.randn(48, 96, generator=torch.Generator().manual_seed(0)) * 7
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert 0.6 < float(values.min()) and float(values.max()) < 1.3


def test_normalising_the_latents_keeps_the_pictures():
    torch.manual_seed(0)
    model = AutoencoderKL(TINY_AE).eval()
    autoencoder.initialise(model)
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        wanted = model.decode(model.encode(images).mode())
        autoencoder.normalise(model, images)
        z = model.encode(images).mode()
        found = model.decode(z)
    assert torch.allclose(model.to_model(z).mean((0, 2, 3)), torch.zeros(16), atol=1e-6)
    assert torch.allclose(model.to_model(z).std((0, 2, 3)), torch.ones(16), atol=1e-6)
    inside = (..., slice(24, 40), slice(24, 40))  # the border differs a little: see normalise
    assert (found - wanted)[inside].abs().mean() < 0.03 * wanted[inside].abs().mean()


def test_scaled_fp8_file_loads_close_to_the_weights():
    torch.manual_seed(0)
    model = S3DiT(TINY_DIT)
    transformer.initialise(model)
    stored = export.scaled_fp8(model.state_dict())
    assert stored["scaled_fp8"].dtype == torch.float8_e4m3fn and stored["scaled_fp8"].numel() == 0
    assert stored["layers.0.attention.qkv.weight"].dtype == torch.float8_e4m3fn
    assert stored["x_embedder.weight"].dtype == torch.bfloat16
    loaded = load_transformer(stored, dtype=torch.float32)
    for (name, p), q in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert (p - q).norm() <= 0.05 * p.norm() + 1e-6, name


def test_preview_colours_are_fitted():
    generator = torch.Generator().manual_seed(0)
    latents, factors = torch.randn(2, 16, 4, 4, generator=generator), torch.randn(16, 3, generator=generator)
    images = torch.einsum("bchw,cr->brhw", latents, factors) + 0.25
    found, bias = export.fit_preview(latents, images.repeat_interleave(8, 2).repeat_interleave(8, 3))
    assert torch.allclose(torch.tensor(found), factors, atol=1e-3)
    assert bias == pytest.approx([0.25] * 3, abs=1e-3)


def test_nano_is_small_enough():
    config = NanoConfig()
    size = sum(p.numel() for p in S3DiT(config.transformer, device="meta").parameters())
    text_size = sum(
        p.numel()
        for p in Qwen3TextEncoder(config.text_encoder, device="meta", language_model=True).parameters()
    )
    pixels = sum(p.numel() for p in AutoencoderKL(config.autoencoder, device="meta").parameters())
    seen = sum(p.numel() for p in VisionEncoder(config.vision).parameters())
    assert 1.3 * size + 2 * (text_size + pixels + seen) <= 40e6
