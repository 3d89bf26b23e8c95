"""Training in the host: on whatever base is loaded, what it keeps, and that all else is as before."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.lora
import comfy.model_management as management
import comfy.quant_ops
import comfy.sd
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.core.lora_files import DIALECTS, write
from tests.core.random_models import random_s3dit, relative
from tests.host import matrix
from tests.host.inside import extension_module
from tests.host.packs import small_native
from tests.host.weight_files import TRANSFORMER
from tests.inside.sampling import SEED, from_file, prompts, sampled
from tests.inside.test_lora import LAYERS, bases, with_lora  # noqa: F401  (a fixture)
from zimage_core import S3DiT, S3DiTConfig
from zimage_core.train import lora as library_lora

layers = extension_module("nodes.host.training.layers")
training = extension_module("nodes.host.training.train")
folders = extension_module("nodes.host.training.data_folders")
train_lora = extension_module("nodes.train_lora")
training_data = extension_module("nodes.training_data")
load_patcher = extension_module("nodes.host.loading.model").load_patcher
load_clip = extension_module("nodes.host.loading.clip").load_clip
load_vae = extension_module("nodes.host.loading.vae").load_vae
applied = extension_module("nodes.host.running.lora")
weights = extension_module("zimage_core.weights")
lora = extension_module("zimage_core.train.lora")
Watch = extension_module("zimage_core.train.run").Watch
NANO = extension_module("nodes.host.built_in").NANO

SAME = 1e-5  # relative L2 of gradients in float32, summed in another order
INPUTS_ROUNDED = 0.05  # where the host multiplies in int8 what was rounded to that
ROUNDS_INPUTS = "int8_tensorwise" in comfy.quant_ops.QUANT_ALGOS
STEPS = 4
TINY = S3DiTConfig(dim=128, n_layers=2, n_refiner_layers=1, n_heads=1, cap_feat_dim=256, t_hidden=64)
WANTED = training.Wanted(
    name="mine",
    preset="concept",
    steps=STEPS,
    rank=2,
    batch=2,
    resolution=32,
    sample_prompts=("a sloth on a blue background",),
    sample_every=2,
    save_every=2,
    prior=("a fox on a pink background", "a key on a white background"),
)


def gradients(model: torch.nn.Module, changes: dict, kind: Any) -> dict[str, Tensor]:
    """Of what is beside the layers, from one random loss; kind: the module of LoRAs that made them."""
    generator = torch.Generator().manual_seed(SEED)
    for change in changes.values():
        for p in change.parameters():
            if p.requires_grad:
                p.data.copy_(torch.randn(p.shape, generator=generator) * 0.02)
    x = torch.randn(2, 16, 8, 12, generator=generator)
    context = torch.randn(2, 21, model.config.cap_feat_dim, generator=generator)
    out = model(x.to(model.x_pad_token), torch.tensor([0.3, 0.8]), context)
    (out.float() * torch.randn(out.shape, generator=generator)).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def plain_gradients(state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Of the library's network with these weights, by nothing but torch's autograd."""
    model = S3DiT(config)
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return gradients(model, library_lora.inject(model, library_lora.Settings(rank=2)), library_lora)


def load(patcher: Any, streamed: bool = False) -> None:
    """As the host loads weights; streamed: as good as none of them."""
    with torch.inference_mode():
        if streamed:
            patcher.load(torch.device("cpu"), lowvram_model_memory=1)
        else:
            management.load_models_gpu([patcher])


def host_gradients(patcher: Any) -> dict[str, Tensor]:
    with torch.inference_mode():  # as the host runs nodes
        with torch.inference_mode(False), torch.enable_grad():
            model = layers.trainable(patcher)
            return gradients(model, lora.inject(model, lora.Settings(rank=2)), lora)


def off(found: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert found.keys() == right.keys()
    return max(relative(found[name].float(), right[name].float()) for name in right)


def multiplied_by(patcher: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the blocks' matrices as the loaded layers have them: a LoRA may be rounded into them."""
    out = dict(state)
    for layer in LAYERS:
        linear = patcher.model.diffusion_model.get_submodule(layer)
        out[f"{layer}.weight"] = linear(torch.eye(state[f"{layer}.weight"].shape[1])).T
    return out


@pytest.mark.parametrize("kind", ["plain", "with a LoRA", "streamed with a LoRA"])
@pytest.mark.parametrize("base", ["bf16", "fp8", "int8", "gguf"])
def test_gradients_are_those_of_the_weights_that_the_base_stands_for(base, kind, bases) -> None:  # noqa: F811
    path, state, _ = bases[base]
    with torch.inference_mode():
        patcher = load_patcher(path, "fp32" if base == "bf16" else "auto")
        if kind != "plain":
            written = write(state, DIALECTS["ai-toolkit"], SEED, size=0.1)
            patcher = with_lora(patcher, written)
    load(patcher, streamed=kind.startswith("streamed"))
    if kind != "plain":
        before, state = state, multiplied_by(patcher, written.merged(state))
        assert relative(state[f"{LAYERS[0]}.weight"], before[f"{LAYERS[0]}.weight"]) > 0.05
    with torch.enable_grad():
        right = plain_gradients(state, TRANSFORMER)
    bound = INPUTS_ROUNDED if base == "int8" and ROUNDS_INPUTS else SAME
    assert off(host_gradients(patcher), right) <= bound
    patcher.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_on_a_model_of_the_host_s_own_loader(dtype: torch.dtype) -> None:
    state = random_s3dit(matrix.SMALL_CONFIG, SEED).state_dict()
    kept = {key: value.to(dtype) for key, value in state.items()}
    with torch.inference_mode():
        patcher = small_native.patcher(dict(kept), dtype=dtype)
    with torch.enable_grad():
        right = plain_gradients(kept, matrix.SMALL_CONFIG)
    load(patcher)
    assert off(host_gradients(patcher), right) <= SAME


class Stopped(Exception):
    """Somebody pressed Cancel."""


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's folders, empty."""
    for name in ("input", "output", "user", "loras"):
        (tmp_path / name).mkdir()
        place = str(tmp_path / name)
        monkeypatch.setattr(folder_paths, f"get_{name}_directory", lambda place=place: place, raising=False)
    listed = ([str(tmp_path / "loras")], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", listed)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


@pytest.fixture(scope="module")
def small(scratch: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE: a transformer of random weights between nano's encoders."""
    with torch.inference_mode():
        return (
            from_file(scratch / "tiny.safetensors", random_s3dit(TINY, SEED).state_dict()),
            load_clip(NANO / "text_encoder.safetensors"),
            load_vae(NANO / "autoencoder.safetensors"),
        )


class Seen(Watch):
    """stop: the step at which somebody presses Cancel."""

    def __init__(self, stop: int = 0) -> None:
        self.stop, self.steps, self.samples = stop, [], []

    def step(self, progress: Any) -> None:
        self.steps.append(progress.step)
        if progress.step == self.stop:
            raise Stopped

    def sample(self, step: int, prompt: str, pixels: Tensor) -> None:
        self.samples.append((step, prompt, pixels))


def trained(small: tuple, watch: Watch | None = None, model: Any = None, **changed: Any) -> Any:
    """As a node runs: in inference mode."""
    wanted = dataclasses.replace(WANTED, **changed)
    with torch.inference_mode():
        data = folders.load(folders.BUILT_IN)
        return training.train(model or small[0], *small[1:], data, wanted, watch or Watch())


def run_of(places: Path, name: str = "mine") -> Path:
    return places / "output" / "zimage_training" / name


def picture(patcher: Any) -> Tensor:
    with torch.inference_mode():
        return sampled(patcher, *prompts(256, 12, 12), steps=2)


def test_a_run_makes_a_lora_that_its_model_has_on_it(small, places) -> None:
    before, watch = picture(small[0]), Seen()
    made = trained(small, watch)
    assert watch.steps == [1, 2, 3, 4]
    assert [(step, list(pixels.shape)) for step, _, pixels in watch.samples] == [
        (2, [3, 32, 32]), (4, [3, 32, 32]), (0, [3, 32, 32]), (4, [3, 32, 32]),
    ]  # fmt: skip
    assert made.file == run_of(places) / "mine.safetensors"
    names = load_file(made.file).keys()
    assert all(name.startswith("diffusion_model.layers.") for name in names)
    file = applied.LoraUse("file", weights.read_lora(made.file), 1.0, 0.0)
    assert torch.equal(picture(made.model), picture(applied.with_loras(small[0], None, [file])[0]))
    assert not torch.equal(picture(made.model), before)
    assert torch.equal(picture(small[0]), before)
    assert list((places / "loras").iterdir()) == []
    assert "10 pictures" in made.said[0] and made.said[-1].startswith("mine.safetensors at 1: ")


def test_cancel_keeps_what_there_is_and_the_next_run_goes_on_to_the_bit(small, places) -> None:
    whole = load_file(trained(small, name="whole").file)
    with pytest.raises(Stopped):
        trained(small, Seen(stop=3))
    assert not (run_of(places) / "mine.safetensors").exists()
    again = Seen()
    parted = load_file(trained(small, again).file)
    assert again.steps == [4]
    assert whole.keys() == parted.keys() and all(torch.equal(whole[name], parted[name]) for name in whole)
    states = sorted(path.name for path in (run_of(places) / "state").glob("*.safetensors"))
    assert len(states) == 2


def test_a_finished_run_returns_at_once_and_trains_on_for_more_steps(small, places, monkeypatch) -> None:
    first = trained(small)
    with monkeypatch.context() as nothing:
        nothing.setattr(training, "parts_of", None)
        watch = Seen()
        again = trained(small, watch)
    assert again.file == first.file and watch.steps == []
    assert again.said[0].startswith("This run was finished before")
    more = Seen()
    trained(small, more, steps=STEPS + 2)
    assert more.steps == [5, 6]
    with pytest.raises(ValueError, match="the run mine was begun with lora.rank 2, now it is 3"):
        trained(small, rank=3)


def test_it_is_saved_on_request_and_over_no_file_of_others(small, places) -> None:
    kept = places / "loras" / "mine.safetensors"
    kept.write_bytes(b"somebody's")
    with pytest.raises(ValueError, match="exists already, and this run did not make it"):
        trained(small, save=True)
    assert kept.read_bytes() == b"somebody's" and not run_of(places).exists()
    kept.unlink()
    made = trained(small, save=True)
    assert made.file == kept and kept.read_bytes() == (run_of(places) / "mine.safetensors").read_bytes()
    longer = trained(small, save=True, steps=STEPS + 1)
    assert kept.read_bytes() == (run_of(places) / "mine.safetensors").read_bytes()
    assert longer.file == kept
    kept.write_bytes(b"somebody's")
    with pytest.raises(ValueError, match="exists already"):
        trained(small, save=True, steps=STEPS + 2)


NAMES = (
    "", ".", "..", "a/b", "a\\b", "/a", "C:a", "con", "nul.txt", ".hidden", "a ", "a.", "a\nb", "x" * 65,
    "\U00020000" * 60,  # letters of four bytes
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_plain_ones_are_refused(small, places, name: str) -> None:
    with pytest.raises(ValueError, match="is no plain file name"):
        trained(small, name=name)
    assert list((places / "output").iterdir()) == []


def test_links_in_the_place_of_a_run_are_refused(small, places) -> None:
    elsewhere = places / "elsewhere"
    elsewhere.mkdir()
    run_of(places).parent.mkdir()
    run_of(places).symlink_to(elsewhere)
    with pytest.raises(ValueError, match="is a link to"):
        trained(small)
    run_of(places).unlink()
    run_of(places).mkdir()
    (run_of(places) / "state").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="state is a link to"):
        trained(small)
    assert list(elsewhere.iterdir()) == []


def test_too_little_memory_ends_in_a_sentence_and_the_next_run_goes_on(small, places) -> None:
    before = picture(small[0])

    class Full(Seen):
        def step(self, progress: Any) -> None:
            super().step(progress)
            if progress.step == 2:
                raise management.OOM_EXCEPTION("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(RuntimeError, match="memory is too small .*Lower batch .now 2., resolution .32."):
        trained(small, Full())
    assert not management.current_loaded_models
    assert torch.equal(picture(small[0]), before)
    watch = Seen()
    trained(small, watch)
    assert watch.steps == [3, 4]


def test_another_model_or_data_under_a_name_is_an_error(small, places) -> None:
    with pytest.raises(Stopped):
        trained(small, Seen(stop=2))
    state = random_s3dit(TINY, SEED).state_dict()
    other = with_lora(small[0], write(state, DIALECTS["ai-toolkit"], SEED, size=0.1))
    with pytest.raises(ValueError, match="the run mine was begun with another base model"):
        trained(small, model=other)
    trained(small, model=other, name="other")


def test_an_adapter_is_under_the_model_while_it_trains_and_not_in_the_lora(small, places) -> None:
    adapter = places / "loras" / "adapter.safetensors"
    written = write(random_s3dit(TINY, SEED).state_dict(), DIALECTS["fused"], SEED, size=0.3)
    save_file({name: value.contiguous() for name, value in written.tensors.items()}, adapter)
    without, with_it = Seen(), Seen()
    plain = load_file(trained(small, without, name="plain").file)
    made = load_file(trained(small, with_it, name="adapted", adapter=adapter).file)
    assert made.keys() == plain.keys()
    assert any(not torch.equal(made[name], plain[name]) for name in made)
    first, second = ([pixels for step, _, pixels in seen.samples if step == 0] for seen in (without, with_it))
    assert torch.equal(first[0], second[0])  # samples are those of the model as it is used


def test_data_is_named_by_the_list_and_stays_in_its_folder(places, alone) -> None:
    source = places / "input" / "cats" / "two"
    shutil.copytree(folders.EXAMPLE, source)
    rows = [{"image_path": path} for path in ("two/01.png", str(folders.EXAMPLE / "02.png"))]
    (places / "input" / "cats" / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (places / "input" / "out").symlink_to(folders.EXAMPLE)
    (source / "link.png").symlink_to(folders.EXAMPLE / "03.png")
    secret = places / "elsewhere"
    shutil.copytree(folders.EXAMPLE, secret)
    listed = ["input/cats", "input/cats/list.jsonl", "input/cats/two"]
    assert folders.choices() == [*listed, folders.BUILT_IN]
    data = folders.load("input/cats/two").data
    assert len(data.pictures) == 10 and any("link.png leads outside" in line for line in data.problems)
    data = folders.load("input/cats/list.jsonl").data
    assert len(data.pictures) == 1 and any("leads outside" in line for line in data.problems)
    refused = ("input/out", "../secret", "input/../secret", str(secret), "input", "", "photos", "input/none")
    for name in refused:
        with pytest.raises(ValueError, match="there is no training data"):
            folders.load(name)
    owned = places / "user" / "zimage" / "training_folders.json"
    owned.parent.mkdir()
    owned.write_text(json.dumps({"photos": str(secret)}))
    assert folders.choices() == [*listed, "photos", folders.BUILT_IN]
    before = folders.state_of("photos")
    (secret / "01.txt").write_text("another caption")
    assert folders.state_of("photos") != before
    for wrong in ("[]", "{", '{"a/b": "/"}', '{"photos": "/no/such"}'):
        owned.write_text(wrong)
        with pytest.raises(ValueError, match="training_folders.json"):
            folders.load("photos")
        assert folders.choices() == [*listed, folders.BUILT_IN]


def test_encoders_that_do_not_belong_are_named(small, scratch) -> None:
    wider = dataclasses.replace(matrix.SMALL_CONFIG, cap_feat_dim=320)
    other = from_file(scratch / "other.safetensors", random_s3dit(wider, SEED).state_dict())
    with pytest.raises(ValueError, match="this CLIP makes features 256 wide, the MODEL takes"):
        trained(small, model=other)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that run without a page."""
    hidden = SimpleNamespace(unique_id=None, prompt=None, extra_pnginfo=None)
    for kind in (train_lora.ZImageTrainLora, training_data.ZImageTrainingData):
        monkeypatch.setattr(kind, "hidden", hidden, raising=False)


def settings_of_node(**changed: Any) -> dict[str, Any]:
    """What the page sends: the defaults of the widgets, but for a short run."""
    widgets = {i.id: i.default for i in train_lora.ZImageTrainLora.define_schema().inputs[4:]}
    short = {"steps": 2, "batch": 2, "rank": 2, "resolution": 32, "sample_prompts": "a sloth\n\na fox"}
    return widgets | short | changed


def test_the_two_nodes(small, places, alone) -> None:
    shutil.copytree(folders.EXAMPLE, places / "input" / "sloths")
    shutil.copy(folders.EXAMPLE / "01.png", places / "input" / "sloths" / "twin.png")
    with torch.inference_mode():
        data, sheet, report = training_data.ZImageTrainingData.execute("input/sloths", True).args
        assert sheet.ndim == 4 and sheet.shape[-1] == 3
        assert "twin.png" in report and "10 pictures, 1 left out" in report
        assert "11 small" in report and "02.png: small" not in report  # said once, not by picture
        everything = training_data.ZImageTrainingData.execute("input/sloths", False).args[0]
        assert len(everything.data.pictures) == 11 and len(data.data.pictures) == 10
        done = train_lora.ZImageTrainLora.execute(*small, data, **settings_of_node())
        model, file, report, samples = done.args
        assert file == "zimage_training/my lora/my lora.safetensors" and (places / "output" / file).is_file()
        assert "input/sloths: 10 pictures, 10 at 32x32." in report
        assert not torch.equal(picture(model), picture(small[0]))
        assert samples.shape[1] > 2 * 32 and samples.shape[2] > 2 * 32  # two prompts, before and after
        (shown,) = done.ui["training"]
        assert [step for step, _ in shown["curve"]] == [1, 2] and shown["sampled"] == 2
        names = [sample["filename"] for sample in shown["samples"]]
        assert names == ["000002-0.png", "000002-1.png"]
        with pytest.raises(ValueError, match="9 sample prompts: expected at most 8"):
            many = "\n".join(map(str, range(9)))
            train_lora.ZImageTrainLora.execute(*small, data, **settings_of_node(sample_prompts=many))


def test_cancel_on_the_page_ends_the_node_and_the_next_run_goes_on(small, places, alone, monkeypatch) -> None:
    run = extension_module("nodes.host.page.training").Live
    pressed, step = [], run.step

    def press(self: Any, progress: Any) -> None:
        pressed.append(progress.step)
        management.interrupt_current_processing(progress.step == 1 and len(pressed) == 1)
        step(self, progress)

    monkeypatch.setattr(run, "step", press)
    given = settings_of_node(steps=3)
    with torch.inference_mode():
        data = folders.load(folders.BUILT_IN)
        with pytest.raises(management.InterruptProcessingException):
            train_lora.ZImageTrainLora.execute(*small, data, **given)
        train_lora.ZImageTrainLora.execute(*small, data, **given)
    assert pressed == [1, 2, 3]


def test_cancel_is_heard_within_samples_and_prior_pictures(small, places, monkeypatch) -> None:
    class Pressed(Seen):
        """Somebody presses Cancel when the first sample is there, or before any picture."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def stage(self, name: str, done: int, total: int) -> None:
            management.interrupt_current_processing(name == self.name)

        def sample(self, step: int, prompt: str, pixels: Tensor) -> None:
            super().sample(step, prompt, pixels)
            management.interrupt_current_processing(True)

    with pytest.raises(management.InterruptProcessingException):
        trained(small, Pressed("prior"))
    assert not (run_of(places) / "state").exists()
    watch = Pressed("")
    with pytest.raises(management.InterruptProcessingException):
        trained(small, watch, sample_prompts=("a sloth", "a fox"))
    assert [(step, prompt) for step, prompt, _ in watch.samples] == [(2, "a sloth")]
    again = Seen()
    trained(small, again, sample_prompts=("a sloth", "a fox"))
    assert again.steps == [3, 4]


def test_a_place_that_is_no_file_is_not_saved_over(small, places) -> None:
    (places / "loras" / "mine.safetensors").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        trained(small, save=True)


def test_the_curve_goes_on_where_a_killed_run_is_taken_up(places) -> None:
    folder = extension_module("nodes.host.training.run_folder").RunFolder("mine")
    log = folder.path / "state" / "log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("".join(json.dumps({"step": step, "smooth": 1.0}) + "\n" for step in range(1, 6)))
    live = extension_module("nodes.host.page.training").Live(None, folder, (), 6)
    live.step(SimpleNamespace(step=3, steps=6, smooth=0.5, left=1.0))
    assert live.points == [(1, 1.0), (2, 1.0), (3, 0.5)]


FILES = [
    (names, settings)
    for names in library_lora.WRITTEN
    for settings in (
        library_lora.Settings(rank=2, alpha=3.0),
        library_lora.Settings(rank=256, targets="with modulation"),
        library_lora.Settings(kind="lokr", rank=2, alpha=3.0),
        library_lora.Settings(kind="lokr", rank=64, alpha=3.0, factor=3),
    )
    if settings.kind == "lora" or names != "diffusers"
]


@pytest.mark.parametrize(("names", "settings"), FILES, ids=str)
def test_files_count_alike_in_all_loaders_of_their_names(tmp_path, names, settings) -> None:
    with torch.inference_mode(False):
        model = random_s3dit(matrix.SMALL_CONFIG, SEED)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        changes, generator = library_lora.inject(model, settings), torch.Generator().manual_seed(SEED)
        for change in changes.values():
            for part in change.parts().values():
                part.data = torch.randn(part.shape, generator=generator) * 0.1
        wanted = library_lora.merged(state, changes)
        path = tmp_path / "made.safetensors"
        about = library_lora.described(settings)
        library_lora.write(path, changes, about, names, torch.float32)
    with torch.inference_mode():
        plain = small_native.patcher(dict(state), dtype=torch.float32)
        theirs = comfy.sd.load_lora_for_models(plain, None, load_file(path), 1.0, 0.0)[0]
        ours = applied.with_loras(plain, None, [applied.LoraUse("made", weights.read_lora(path), 1.0, 0.0)])[
            0
        ]
        known = comfy.lora.model_lora_keys_unet(plain.model, {})
        reads = names == "comfyui" or (
            names == "diffusers" and "transformer.layers.0.attention.to_q" in known
        )
        for patcher in (theirs, ours) if reads else (ours,):
            assert {key.removeprefix("diffusion_model.") for key in patcher.patches} == {
                f"{layer}.weight" for layer in changes
            }
            for key, patches in patcher.patches.items():
                name = key.removeprefix("diffusion_model.")
                made = comfy.lora.calculate_weight(patches, state[name].clone(), key)
                assert relative(made, wanted[name]) <= SAME


def test_a_bad_picture_is_named_once_and_without_the_place_of_its_folder(places, alone) -> None:
    folder = places / "input" / "mine"
    shutil.copytree(folders.EXAMPLE, folder)
    (folder / "02.png").write_bytes((folder / "02.png").read_bytes()[:300])
    (folder / "03.txt").unlink()
    report = training_data.ZImageTrainingData.execute("input/mine", False).args[2]
    assert report.count("02.png") == 1 and "- 03.png has no caption: 03.txt is missing" in report
    assert str(places) not in report


def test_a_run_with_other_pictures_says_so(small, places, alone) -> None:
    shutil.copytree(folders.EXAMPLE, places / "input" / "sloths")
    with torch.inference_mode():
        data = training_data.ZImageTrainingData.execute("input/sloths", False).args[0]
        train_lora.ZImageTrainLora.execute(*small, data, **settings_of_node())
        (places / "input" / "sloths" / "01.txt").write_text("something else")
        data = training_data.ZImageTrainingData.execute("input/sloths", False).args[0]
        with pytest.raises(ValueError, match="begun with other pictures or captions: .* another name"):
            train_lora.ZImageTrainLora.execute(*small, data, **settings_of_node())
