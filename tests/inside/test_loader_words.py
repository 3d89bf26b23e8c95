"""What the loaders choose by themselves and say of files; those of full size are holes on the disk here."""

from __future__ import annotations

import json
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import torch
from safetensors.torch import save_file

from tests.host import full_size, weight_files
from tests.host.inside import ROOT, extension_module

NANO = "built-in: nano"
FOLDERS = {"transformer": "diffusion_models", "text_encoder": "text_encoders", "vae": "vae"}
loaders = extension_module("nodes.loaders")
part_loaders = extension_module("nodes.part_loaders")
footprint = extension_module("nodes.host.loading.footprint")


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty model folders in place of the host's."""
    for name in [*FOLDERS.values(), "checkpoints", "diffusers"]:
        (tmp_path / name).mkdir()
        where = ([str(tmp_path / name)], {".safetensors"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, where)
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.filename_list_cache.clear()


def offered(widget: str) -> list[str]:
    folder_paths.filename_list_cache.clear()
    inputs = loaders.ZImageLoader.INPUT_TYPES()["required"]
    kind, options = inputs[widget]
    return kind if isinstance(kind, list) else options["options"]


def said(node, **inputs: str) -> str:
    output = node.PREPARE_CLASS_CLONE(None).execute(**inputs)
    return output.ui.as_dict()["text"][0]


def free(monkeypatch: pytest.MonkeyPatch, vram: float | None, ram: float) -> None:
    """A machine with so many GB free; vram None is one without a card."""
    card = torch.device("cpu" if vram is None else "cuda")
    sizes = {"cpu": int(ram * 10**9), "cuda": int((vram or 0) * 10**9)}
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: card)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: sizes[device.type])


def test_nano_is_chosen_where_there_is_nothing_of_full_size(models: Path) -> None:
    assert [offered(widget) for widget in FOLDERS] == [[NANO]] * 3
    save_file({"double_blocks.0.w": torch.ones(2)}, models / "diffusion_models" / "a_flux.safetensors")
    (models / "diffusion_models" / "a_page.safetensors").write_text("<html>")
    save_file(weight_files.transformer(), models / "diffusion_models" / "a_small.safetensors")
    names = offered("transformer")
    assert names[0] == NANO
    assert {"a_flux.safetensors", "a_page.safetensors", "a_small.safetensors"} == set(names[1:])


def test_a_file_of_full_size_is_chosen_and_an_official_name_before_it(models: Path) -> None:
    folder = models / "diffusion_models"
    save_file(weight_files.transformer(), folder / "a_small.safetensors")
    full_size.write(folder / "my_tune.safetensors", full_size.transformer(), torch.bfloat16)
    assert offered("transformer")[:2] == ["my_tune.safetensors", NANO]
    (folder / "sub").mkdir()
    for official in ("z_image_bf16", "z_image_turbo_bf16"):
        (folder / "sub" / f"{official}.safetensors").touch()
        assert Path(offered("transformer")[0]).name == f"{official}.safetensors"
    assert sorted(offered("transformer")) == sorted({*offered("transformer")})
    assert len(offered("transformer")) == 5
    full_size.write(models / "text_encoders" / "mine.safetensors", full_size.text_encoder(), torch.bfloat16)
    full_size.write(models / "vae" / "mine.safetensors", full_size.autoencoder(), torch.float32)
    assert offered("text_encoder")[0] == offered("vae")[0] == "mine.safetensors"


def test_a_folder_of_a_diffusers_model_is_chosen_too(models: Path) -> None:
    part = models / "diffusers" / "Z-Image-Turbo" / "transformer"
    full_size.write(part / "model.safetensors", full_size.transformer(), torch.bfloat16)
    assert offered("transformer") == ["Z-Image-Turbo/", NANO]


@pytest.fixture
def files(models: Path) -> dict[str, str]:
    full_size.write(models / "diffusion_models" / "m.safetensors", full_size.transformer(), torch.bfloat16)
    full_size.write(models / "text_encoders" / "t.safetensors", full_size.text_encoder(), torch.bfloat16)
    full_size.write(models / "vae" / "v.safetensors", full_size.autoencoder(), torch.float32)
    return {
        "transformer": "m.safetensors",
        "text_encoder": "t.safetensors",
        "vae": "v.safetensors",
        "weight_dtype": "auto",
    }


def test_one_line_says_what_is_loaded_and_how_many_gigabytes(models, files, monkeypatch) -> None:
    free(monkeypatch, 16, 16)
    rest = " + text 8.0 GB + VAE 0.3 GB"
    assert said(loaders.ZImageLoader, **files) == f"Turbo bf16 12.3 GB{rest}"
    halved = {**files, "weight_dtype": "fp8_e4m3fn"}
    assert said(loaders.ZImageLoader, **halved) == f"Turbo fp8_e4m3fn 6.2 GB{rest}"
    folder = models / "diffusion_models"
    full_size.write(folder / "m.safetensors", full_size.transformer(), torch.bfloat16, spread=0.9)
    assert said(loaders.ZImageLoader, **files) == f"Base bf16 12.3 GB{rest}"
    full_size.write(folder / "m.safetensors", full_size.transformer(), torch.float8_e4m3fn)
    assert said(loaders.ZImageLoader, **files) == f"Turbo fp8 6.2 GB{rest}"
    omni = full_size.transformer(siglip_feat_dim=1152)
    full_size.write(folder / "m.safetensors", omni, torch.bfloat16)
    size = sum(p.numel() for p in omni.parameters()) * 2 / 1e9
    assert said(loaders.ZImageLoader, **files) == f"omni bf16 {size:.1f} GB{rest}"


@pytest.mark.parametrize(
    "vram, ram, places",
    [
        (8, 12, "8.0 GB of VRAM and 12.0 GB of RAM free"),
        (None, 16, "16.0 GB of RAM free"),
    ],
)
def test_files_that_do_not_fit_are_said_to(files, monkeypatch, vram, ram, places) -> None:
    """20.7 GB in all."""
    free(monkeypatch, vram, ram)
    _, warning = said(loaders.ZImageLoader, **files).split("\n")
    assert warning.startswith(f"20.7 GB to load, but only {places}: it may fail or be very slow.")
    assert "fp8" in warning
    free(monkeypatch, vram, ram + 6)
    assert "\n" not in said(loaders.ZImageLoader, **files)


def test_a_part_alone_says_so_too_but_not_of_what_is_loaded_already(monkeypatch) -> None:
    free(monkeypatch, None, 0.001)
    node = part_loaders.PART_LOADERS["vae"].PREPARE_CLASS_CLONE(None)
    first = node.execute(vae=NANO)
    about, warning = first.ui.as_dict()["text"][0].split("\n")
    assert about.endswith(", 8 MB") and warning.startswith("8 MB to load, but only 1 MB of RAM free")
    assert node.execute(vae=NANO).ui.as_dict()["text"] == (about,)


def test_nano_says_what_it_is_and_where_its_things_are_listed(monkeypatch) -> None:
    text = said(loaders.ZImageLoader, transformer=NANO, text_encoder=NANO, vae=NANO, weight_dtype="auto")
    concepts = json.loads((ROOT / "zimage_core" / "train" / "nano" / "concepts.json").read_text("utf-8"))
    assert f"draws {len(concepts['concepts'])} things at 128x128" in text.splitlines()[0]
    assert "models/nano/README.md lists them" in text
