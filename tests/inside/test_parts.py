"""What is sampled in parts: each part is steered by its own part of the pictures of a control."""

from __future__ import annotations

import logging
from collections.abc import Callable

import comfy.hooks
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import Tensor

from tests.core.random_models import random_s3dit, relative
from tests.host import matrix
from tests.host.inside import extension_module
from tests.inside.sampling import SEED, SIZE, from_file, in_windows, noise_of, prompts, sampled, stepped
from tests.inside.test_control import PooledVAE, library_encode, published
from zimage_core.conditions.control import Control, control_latent
from zimage_core.weights import load_control

CLOSE = 1e-5  # relative L2
NETWORK = random_s3dit(matrix.SMALL_CONFIG, SEED)
(PROMPT,) = prompts(matrix.CAPTION, 21)
ROWS, COLUMNS = SIZE
random_pictures = torch.rand(3, 8 * ROWS, 8 * COLUMNS, 3, generator=torch.Generator().manual_seed(SEED))
PICTURES, SCENE = random_pictures[:2], random_pictures[2:]
MASK = (random_pictures[:1, ..., 0] > 0.5).float()
INPUTS = {  # of the control node
    "picture": {"image": PICTURES[:1]},
    "inpainting": {"image": PICTURES[:1], "inpaint_image": SCENE, "mask": MASK},
    "inpainting alone": {"image": None, "inpaint_image": SCENE, "mask": MASK},
    "inpainting of another size": {
        "image": PICTURES[:1],
        "inpaint_image": SCENE.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2),
        "mask": MASK,
    },
}
Box = tuple[slice, slice]  # rows and columns of latent cells
Velocity = Callable[[Tensor, Tensor], Tensor]  # (latents, sigma [1])

control = extension_module("nodes.host.running.control")


def columns(start: int, end: int) -> Box:
    return slice(0, ROWS), slice(start, end)


def rows(start: int, end: int) -> Box:
    return slice(start, end), slice(0, COLUMNS)


WHOLE, LEFT, RIGHT = columns(0, COLUMNS), columns(0, COLUMNS // 2), columns(COLUMNS // 2, COLUMNS)


def in_area(box: Box) -> list:
    area = (*(side.stop - side.start for side in box), *(side.start for side in box))
    return [[caption, {**more, "area": area}] for caption, more in PROMPT]


@pytest.fixture(scope="module")
def files(scratch):
    save_file({k: v.contiguous() for k, v in published("2.1").items()}, scratch / "parts.safetensors")
    return scratch


@pytest.fixture(scope="module")
def model(files):
    return lambda: from_file(files / "parts_model.safetensors", NETWORK.state_dict())


@pytest.fixture(params=INPUTS)
def given(request: pytest.FixtureRequest) -> dict[str, Tensor | None]:
    return INPUTS[request.param]


@pytest.fixture(scope="module")
def steered(model, files) -> Callable[..., ModelPatcher]:
    load = extension_module("nodes.host.loading.control").load_control

    def patched(image: Tensor | None, **inpaint: Tensor) -> ModelPatcher:
        network = load(files / "parts.safetensors")
        patch = control.ZImageControlPatch(network, PooledVAE(), image, 0.8, **inpaint)
        return control.controlled(model(), patch)

    return patched


@pytest.fixture(scope="module")
def of_part(files) -> Callable[[dict, Box], Velocity]:
    """The library's velocity of latents that are this part of the picture."""
    network = load_control(files / "parts.safetensors", dtype=torch.float32)

    def made(given: dict, box: Box) -> Velocity:
        def part(name: str) -> Tensor | None:
            pixels = given.get(name)
            if pixels is None:
                return None
            pixels = pixels[:, None] if name == "mask" else pixels.movedim(-1, 1)
            scale = pixels.shape[-1] // COLUMNS
            down, across = (slice(side.start * scale, side.stop * scale) for side in box)
            cut = pixels[..., down, across]
            return torch.nn.functional.avg_pool2d(cut, scale // 8)  # as the host makes it smaller

        latent = control_latent(
            library_encode,
            network.config.channels,
            *(part(name) for name in ("image", "inpaint_image", "mask")),
        )
        hook = Control(network, latent, 0.8)

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            captions = PROMPT[0][0].expand(len(x), -1, -1)
            return NETWORK(x, sigma.expand(len(x)), captions, hooks=[hook])

        return velocity

    return made


@pytest.fixture(scope="module")
def by_library(model, of_part) -> Callable[..., Tensor]:
    """Two Euler steps of the whole picture, of which the parts do not see one another."""

    def made(given: dict, boxes: list[Box], dim: int = -1) -> Tensor:
        parts = [(box, of_part(given, box)) for box in boxes]

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            return torch.cat([part(x[..., box[0], box[1]], sigma) for box, part in parts], dim=dim)

        return stepped(model(), velocity, 2, noise_of())

    return made


def test_areas_of_one_size(steered, by_library, given) -> None:
    """The host runs both in one batch."""
    made = sampled(steered(**given), [*in_area(LEFT), *in_area(RIGHT)], PROMPT)
    assert relative(made, by_library(given, [LEFT, RIGHT])) <= CLOSE


def test_areas_of_two_sizes(steered, by_library, given) -> None:
    boxes = [rows(0, 3), rows(3, ROWS)]
    made = sampled(steered(**given), [*in_area(boxes[0]), *in_area(boxes[1])], PROMPT)
    assert relative(made, by_library(given, boxes, -2)) <= CLOSE


def test_areas_with_hooks(steered, by_library) -> None:
    """With which nothing is kept from one step to the next."""
    given = INPUTS["picture"]
    hooked = [
        [caption, {**more, "hooks": comfy.hooks.HookGroup()}]
        for caption, more in (*in_area(LEFT), *in_area(RIGHT))
    ]
    made = sampled(steered(**given), hooked, PROMPT)
    assert relative(made, by_library(given, [LEFT, RIGHT])) <= CLOSE


@pytest.mark.parametrize("dim", [2, 3])
def test_context_windows(steered, by_library, given, dim: int) -> None:
    half = SIZE[dim - 2] // 2
    made = sampled(in_windows(steered(**given), half, dim), PROMPT, PROMPT)
    boxes = [LEFT, RIGHT] if dim == 3 else [rows(0, half), rows(half, ROWS)]
    assert relative(made, by_library(given, boxes, dim)) <= CLOSE


def test_a_context_window_with_a_frame_before_it(model, steered, of_part, given) -> None:
    """Where the host has such windows; elsewhere they are as long as their parts."""
    patcher = in_windows(steered(**given), COLUMNS // 2, causal_window_fix=True)
    made = sampled(patcher, PROMPT, PROMPT)
    before = int(getattr(patcher.model_options["context_handler"], "causal_window_fix", False))
    start = COLUMNS // 2 - before
    first, second = of_part(given, LEFT), of_part(given, columns(start, COLUMNS))

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        halves = first(x[..., : COLUMNS // 2], sigma), second(x[..., start:], sigma)[..., before:]
        return torch.cat(halves, dim=-1)

    assert relative(made, stepped(model(), velocity, 2, noise_of())) <= CLOSE


def test_areas_in_context_windows(steered, by_library, given) -> None:
    """An area counts from where the window begins."""
    quarter = COLUMNS // 4
    areas = [*in_area(columns(0, quarter)), *in_area(columns(quarter, 2 * quarter))]
    made = sampled(in_windows(steered(**given), 2 * quarter), areas, PROMPT)
    boxes = [columns(start, start + quarter) for start in range(0, COLUMNS, quarter)]
    assert relative(made, by_library(given, boxes)) <= CLOSE


def test_context_windows_over_a_batch(model, steered, of_part) -> None:
    """Three pictures one by one, with two control pictures: the third has the first again."""
    noise = noise_of(batch=3)
    made = sampled(in_windows(steered(PICTURES), 1, 0), PROMPT, PROMPT, noise=noise)
    each = [
        stepped(model(), of_part({"image": PICTURES[i % 2][None]}, WHOLE), 2, noise[i : i + 1])
        for i in range(3)
    ]
    assert relative(made, torch.cat(each)) <= CLOSE


# -- cut out by other extensions


class Cropped:
    """A MODEL for tiles as Ultimate SD Upscale makes it from one with the host's own control.

    It goes by the name of the class, cuts the attribute `image`, calls __init__ again, and puts all back.
    """

    NAMES = ("DiffSynthCnetPatch", "ZImageControlPatch")
    KEPT = ("image", "encoded_image", "encoded_image_size")

    def __init__(self, patcher: ModelPatcher, boxes: list[Box]) -> None:
        self.patcher = patcher.clone()
        kinds = self.patcher.model_options["transformer_options"]["patches"].values()
        every = [patch for patches in kinds for patch in patches]
        (self.patch,) = (patch for patch in every if type(patch).__name__ in self.NAMES)
        self.found = {name: getattr(self.patch, name) for name in self.KEPT}
        patch = self.patch
        self.found |= {"image": patch.image.clone(), "encoded_image": patch.encoded_image.clone()}
        cells = [[slice(8 * side.start, 8 * side.stop) for side in box] for box in boxes]
        tiles = torch.cat([patch.image[:, down, across] for down, across in cells])
        more = {"inpaint_image": patch.inpaint_image, "mask": patch.mask}
        patch.__init__(patch.model_patch, patch.vae, tiles, patch.strength, **more)

    def done(self) -> None:
        for name, value in self.found.items():
            setattr(self.patch, name, value)


def test_tiles_of_ultimate_sd_upscale(model, steered, of_part, by_library, given) -> None:
    """Each is a run of its own; afterwards the whole picture steers again."""
    patcher = steered(**given)
    for box in (LEFT, RIGHT):
        tile = Cropped(patcher, [box])
        noise = noise_of()[..., box[0], box[1]]
        made = sampled(tile.patcher, PROMPT, PROMPT, noise=noise)
        tile.done()
        assert relative(made, stepped(model(), of_part(given, box), 2, noise)) <= CLOSE
    assert relative(sampled(patcher, PROMPT, PROMPT), by_library(given, [WHOLE])) <= CLOSE


def test_a_batch_of_tiles(model, steered, of_part, given) -> None:
    tile = Cropped(steered(**given), [LEFT, RIGHT])
    noise = torch.cat([noise_of()[..., box[0], box[1]] for box in (LEFT, RIGHT)])
    made = sampled(tile.patcher, PROMPT, PROMPT, noise=noise)
    each = [stepped(model(), of_part(given, box), 2, noise[i : i + 1]) for i, box in enumerate((LEFT, RIGHT))]
    assert relative(made, torch.cat(each)) <= CLOSE


def test_a_part_that_nobody_tells_of(steered, caplog: pytest.LogCaptureFixture) -> None:
    """A wrapper calls the MODEL for each half: the picture is made as small; the log says so once."""
    patcher = steered(**INPUTS["picture"])

    def tiled(apply_model: Callable, args: dict) -> Tensor:
        halves = args["input"].chunk(2, dim=-1)
        return torch.cat([apply_model(half, args["timestep"], **args["c"]) for half in halves], dim=-1)

    patcher.set_model_unet_function_wrapper(tiled)
    with caplog.at_level(logging.WARNING):
        sampled(patcher, PROMPT, PROMPT, steps=3)
    (patch,) = patcher.model_options["transformer_options"]["patches"][control.CONTROLS]
    assert {shape[1:3] for shape, _ in patch.vae.uses} == {(8 * ROWS, 8 * COLUMNS), (8 * ROWS, 4 * COLUMNS)}
    said = [r.getMessage() for r in caplog.records if "does not say which" in r.getMessage()]
    assert len(said) == 1 and f"{COLUMNS // 2} x {ROWS}" in said[0]
