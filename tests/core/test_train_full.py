"""Training of the transformer's own weights: which of them change, and that a stopped run goes on exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.core.random_models import random_s3dit, seeds
from tests.core.together import CONFIG, encode, features
from zimage_core import S3DiT
from zimage_core.train.__main__ import main
from zimage_core.train.data.records import PictureRecord
from zimage_core.train.flow import Noise
from zimage_core.train.full import PARTS, FullRun, FullSettings
from zimage_core.train.plan import Plan
from zimage_core.train.run import Parts
from zimage_core.weights import load_transformer

(SEED,) = seeds(1)
NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
SETTINGS = FullSettings(
    plan=Plan(steps=6, lr=1e-3, warmup=1, ema=0.0), noise=Noise("uniform"), resolution=64, batch=2
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[PictureRecord]:
    folder, records = tmp_path_factory.mktemp("pictures"), []
    for number, colour in enumerate(("red", "navy", "khaki")):
        path = folder / f"{number}.png"
        Image.new("RGB", (80, 64), colour).save(path)
        path.with_suffix(".txt").write_text(f"all {colour}")
        records.append(PictureRecord(path, (f"all {colour}",)))
    return records


def train(settings: FullSettings, pictures: list[PictureRecord], folder: Path, stop_at=None) -> S3DiT:
    model = random_s3dit(CONFIG, SEED)
    parts = Parts(model, encode, features, decode=lambda latents: latents[:, :3])
    FullRun(parts, pictures, settings, folder).train(stop_at=stop_at)
    return model


def changed(model: S3DiT) -> set[str]:
    before = dict(random_s3dit(CONFIG, SEED).named_parameters())
    return {
        name.partition(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])
    }


@pytest.mark.parametrize("parts", [("visual", "layers"), ("layers",), tuple(PARTS)])
def test_chosen_parts_change_and_no_others(parts: tuple[str, ...], pictures, tmp_path: Path) -> None:
    found = changed(train(replace(SETTINGS, parts=parts), pictures, tmp_path))
    known = {name.partition(".")[0] for name, _ in random_s3dit(CONFIG, SEED).named_parameters()}
    assert found == {name for part in parts for name in PARTS[part]} & known


def test_every_parameter_is_in_one_part() -> None:
    model = S3DiT(replace(CONFIG, siglip_feat_dim=8), device="meta")
    listed = [name for names in PARTS.values() for name in names]
    assert sorted(listed) == sorted({name.partition(".")[0] for name, _ in model.named_parameters()})


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_stopped_run_goes_on_to_the_same_weights(
    weights: str, ema: float, pictures, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, weights=weights, plan=replace(SETTINGS.plan, ema=ema))
    expected = train(settings, pictures, tmp_path / "whole")
    train(settings, pictures, tmp_path / "parts", stop_at=3)
    found = train(settings, pictures, tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))
    assert next(found.layers.parameters()).dtype == getattr(torch, weights)


def test_checkpointing_changes_no_gradient(pictures, tmp_path: Path) -> None:
    one, other = (
        train(replace(SETTINGS, checkpointing=on), pictures, tmp_path / str(on)) for on in (True, False)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("given", "said"),
    [({"parts": ("eyes",)}, "eyes"), ({"parts": ()}, "some of visual"), ({"weights": "fp4"}, "bfloat16")],
)
def test_what_cannot_be_trained_is_named(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SETTINGS, **given)


def test_the_command_line_writes_a_transformer(pictures, tmp_path: Path, capsys) -> None:
    out = tmp_path / "trained.safetensors"
    given = [
        "full", "--data", str(pictures[0].path.parent), "--model", str(NANO), "--out", str(out),
        "--steps", "2", "--resolution", "64", "--lr", "0.001", "--parts", "layers", "--device", "cpu",
    ]  # fmt: skip
    assert main(given) == 0
    base, made = (load_transformer(path).state_dict() for path in (NANO / "transformer.safetensors", out))
    assert made.keys() == base.keys()
    moved = {name for name in base if not torch.equal(made[name], base[name].to(made[name].dtype))}
    assert {name.partition(".")[0] for name in moved} == {"layers"}
    with safe_open(out, "pt") as file:
        said = file.metadata()
    assert (said["zimage_parts"], said["ss_steps"], said["ss_num_train_images"]) == ("layers", "2", "3")
    assert main(given) == 1 and "exists already" in capsys.readouterr().err
