"""Does curation teach rare things? A nano transformer from random weights, with and without it.

Forty concepts, of which one in ten has a twentieth of the pictures. Both runs have the same steps, seeds and
weights at the start; one draws pictures uniformly, the other by rarity (zimage_core.train.data.concepts), and
asks the model after every quarter of the steps what it cannot draw yet (zimage_core.train.data.curate). Each
is trained by a process of its own. What broke off goes on, from its state in .cache/curation.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from bench.judge import nearest_concept
from bench.nano import CACHE, NANO, ROOT, data_folder
from bench.rows import row
from zimage_core import S3DiT
from zimage_core.config import NanoConfig
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions
from zimage_core.sampling.schedule import turbo_sigmas
from zimage_core.train import parts
from zimage_core.train.data import concepts as found_concepts
from zimage_core.train.data.curate import probe, raised
from zimage_core.train.data.records import PictureRecord
from zimage_core.train.nano import pictures, transformer
from zimage_core.train.nano.captions import Concept, fill, load_concepts, phrasings
from zimage_core.train.nano.muon import with_muon
from zimage_core.train.nano.shards import Shards
from zimage_core.train.plan import Plan
from zimage_core.train.trainer import fit, trained

STATE = ROOT / ".cache" / "curation"
CONCEPTS, RARE_EVERY = 40, 10
COMMON, RARE = 60, 3  # pictures of a concept
STEPS, BATCH, ROUNDS = 600, 32, 4
SEEDS = (0, 1, 2)
ASKED = 12  # prompts for each concept at the end, and
PROBED = 2  # ... between rounds
ARMS = ("uniform", "curated")
SHIFTS = (-8, -4, 0, 4, 8)  # pixels by which a drawing is moved


@dataclass(frozen=True)
class Pool:
    """latents [N,16,h,w] and features of each picture's caption; drawings of the concepts [C,128,128,4]."""

    records: list[PictureRecord]
    shown: list[int]
    latents: Tensor
    features: list[Tensor]
    drawings: Tensor
    names: list[str]


def make_pool(made: parts.Parts, data: Path) -> Pool:
    concepts = load_concepts(data)[:CONCEPTS]
    stems, stored = pictures.load_drawings(data, CACHE / f"drawings-{pictures.DRAWING}.npy")
    indices = [pictures.stem_index(stems, concept.code) for concept in concepts]
    drawings = torch.from_numpy(stored[indices].copy())
    palette, templates = pictures.colours(), phrasings("en", "trained")
    generator = torch.Generator().manual_seed(0)
    records, shown, pixels = [], [], []
    for number, concept in enumerate(concepts):
        for k in range(RARE if number % RARE_EVERY == 0 else COMMON):
            colour = palette[(number + k) % len(palette)]
            shift = [SHIFTS[i] for i in torch.randint(len(SHIFTS), (2,), generator=generator).tolist()]
            moved = drawings[number].roll(shift, dims=(0, 1))
            pixels.append(pictures.on_background(moved[None], colour.pixel[None]))
            template = templates[int(torch.randint(len(templates), (1,), generator=generator))]
            caption = fill(template, concept.names["en"][0], colour, "en")
            records.append(PictureRecord(Path(f"{len(records)}.png"), (caption,)))
            shown.append(number)
    latents = torch.cat([made.encode(part).float() for part in torch.cat(pixels).split(16)])
    features = [made.features(record.captions[0]) for record in records]
    return Pool(records, shown, latents, features, drawings, [c.names["en"][0] for c in concepts])


def prompts(concepts: list[Concept], count: int) -> dict[str, list[str]]:
    """Held-out phrasings; colours in turn."""
    templates, palette = phrasings("en", "held_out"), pictures.colours()

    def asked(at: int, name: str) -> list[str]:
        pairs = [(templates[k % len(templates)], palette[(at + k) % len(palette)]) for k in range(count)]
        return [fill(template, name, colour, "en") for template, colour in pairs]

    return {concept.names["en"][0]: asked(at, concept.names["en"][0]) for at, concept in enumerate(concepts)}


@dataclass
class Run:
    """One arm of one seed."""

    pool: Pool
    made: parts.Parts
    concepts: list[Concept]
    arm: str
    seed: int

    @property
    def folder(self) -> Path:
        return STATE / f"{self.arm}-{self.seed}"

    def train(self) -> dict[str, float]:
        """The share of right pictures of each concept at the end."""
        result = self.folder / "result.json"
        if result.is_file():
            return json.loads(result.read_text())
        torch.manual_seed(self.seed)
        model = S3DiT(NanoConfig().transformer)
        transformer.initialise(model)
        plan = Plan(STEPS, 1.5e-3, warmup=40, cooldown=0.4, ema=0.99, optimizer="muon", seed=self.seed)
        weights = self.first_weights()
        average = {}
        for number in range(1, ROUNDS + 1):
            shards = Shards(model, 1)
            backward = partial(self.backward, shards, torch.tensor(weights))
            end = STEPS * number // ROUNDS
            average = fit(trained(model), backward, plan, self.folder / "state", None, end, with_muon(plan))
            if number < ROUNDS:
                weights = self.next_weights(number, average, weights)
        shares = self.asked(average, ASKED)
        result.write_text(json.dumps(shares))
        return shares

    def first_weights(self) -> tuple[float, ...]:
        if self.arm == "uniform":
            return (1.0,) * len(self.pool.records)
        links = {name.casefold(): ("thing",) for name in self.pool.names}
        return found_concepts.find(self.pool.records, links).weights

    def next_weights(
        self, number: int, average: dict[str, Tensor], weights: tuple[float, ...]
    ) -> tuple[float, ...]:
        """By what the model draws now; kept in a file, because the run may break off."""
        if self.arm == "uniform":
            return weights
        file = self.folder / f"shares-{number}.json"
        if not file.is_file():
            file.write_text(json.dumps(self.asked(average, PROBED)))
        own = [{self.pool.names[concept]} for concept in self.pool.shown]
        return raised(weights, own, json.loads(file.read_text()))

    def backward(self, shards: Shards, weights: Tensor, step: int, generator: torch.Generator) -> float:
        rows = torch.multinomial(weights, BATCH, replacement=True, generator=generator)
        noisy, sigma, wanted = transformer.noised(self.pool.latents[rows], generator)
        return shards.backward([partial(self.loss, noisy, sigma, wanted, rows)])

    def loss(self, noisy: Tensor, sigma: Tensor, wanted: Tensor, rows: Tensor, model: S3DiT) -> Tensor:
        dtype = model.x_pad_token.dtype
        condition = captions([self.pool.features[row] for row in rows.tolist()], dtype)
        return (model(noisy.to(dtype), sigma, condition=condition).float() - wanted).square().mean()

    @torch.no_grad()
    def asked(self, average: dict[str, Tensor], count: int) -> dict[str, float]:
        model = S3DiT(NanoConfig().transformer)
        model.load_state_dict(average, strict=False)
        model.eval()
        number_of = {name: number for number, name in enumerate(self.pool.names)}

        def draw(texts: list[str], seed: int) -> list[Tensor]:
            images, sigmas = [], turbo_sigmas().tolist()
            for start in range(0, len(texts), 16):
                part = texts[start : start + 16]
                generators = [torch.Generator().manual_seed(seed + start + k) for k in range(len(part))]
                x = torch.stack([torch.randn(16, 16, 16, generator=g) for g in generators])
                condition = captions([self.made.features(text) for text in part], torch.float32)
                for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
                    times = torch.full((len(x),), sigma)
                    x = x + (following - sigma) * model(x, times, condition=condition)
                images += list(self.made.decode(x))
            return images

        def score(image: Tensor, name: str) -> float:
            return float(nearest_concept(image, self.pool.drawings) == number_of[name])

        return probe(prompts(self.concepts, count), draw, score)


def captions(features: list[Tensor], dtype: torch.dtype) -> Prompt:
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True).to(dtype)
    return Prompt(Captions(padded, tuple(map(len, features))))


def train(arm: str) -> tuple[list[str], list[dict[str, float]]]:
    """All concepts' names, and of each seed the share of right pictures by name."""
    torch.set_num_threads(1)
    data = data_folder()
    made, _ = parts.from_files(parts.files_in(NANO), whole=True)
    pool, concepts = make_pool(made, data), load_concepts(data)[:CONCEPTS]
    return pool.names, [Run(pool, made, concepts, arm, seed).train() for seed in SEEDS]


def run() -> list[dict]:
    with ProcessPoolExecutor(len(ARMS), get_context("spawn")) as processes:
        found = dict(zip(ARMS, processes.map(train, ARMS), strict=True))
    names = found["uniform"][0]
    rare = names[::RARE_EVERY]
    rows, gains, losses = [], [], []
    for seed in SEEDS:
        shares = {arm: found[arm][1][seed] for arm in ARMS}
        points = {arm: 100 * mean(shares[arm][name] for name in rare) for arm in ARMS}
        means = {arm: 100 * mean(shares[arm].values()) for arm in ARMS}
        gains.append(points["curated"] - points["uniform"])
        losses.append(means["uniform"] - means["curated"])
        against = f"seed {seed}, {STEPS} steps of {BATCH}"
        for arm in ARMS:
            rows.append(row(f"rare concepts, {arm}", points[arm], "% right", None, against))
            rows.append(row(f"all concepts, {arm}", means[arm], "% right", None, against))
    rows.append(row("rare concepts: gain by curation", mean(gains), "points", ">= 10", "mean of the seeds"))
    rows.append(row("all concepts: loss by curation", mean(losses), "points", "<= 1", "mean of the seeds"))
    return rows
