"""FlowEdit (arXiv 2412.08629, algorithm 1): a clean latent moves from one prompt to another.

It follows the difference of two velocities, and is never inverted to noise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Velocities = Callable[[Tensor | None, Tensor, float], tuple[Tensor | None, Tensor]]
Progress = Callable[[int, Tensor], None]


def flow_edit(
    x: Tensor,
    sigmas: Tensor,
    velocities: Velocities,
    draw: Callable[[], Tensor],
    n_min: int = 0,
    n_avg: int = 1,
    mask: Tensor | None = None,
    on_step: Progress | None = None,
) -> Tensor:
    """The edited latent [B, C, H, W], clean like x.

    sigmas: [T + 1], falling to 0; where they begin is how far the latent goes back towards noise.
    velocities(source, target, sigma): the velocities at two noisy latents under the two prompts; source is
    None where only the target's is needed.
    draw(): new noise of x's shape.
    n_min: how many of the last steps are plain sampling of the target, which may change the layout.
    n_avg: noises per step over which the direction is averaged.
    mask: 1 edits, 0 keeps exactly; anything that broadcasts to x.
    on_step(step, latent): gets the picture so far.
    Raises ValueError for counts out of range.

    What moves is kept as the change so far, not as the picture: equal prompts give back x to the bit.
    """
    steps = max(len(sigmas) - 1, 0)
    if n_min < 0 or n_avg < 1:
        raise ValueError(f"n_min must be at least 0 and n_avg at least 1, got {n_min} and {n_avg}")
    change, noise, grid = torch.zeros_like(x), None, sigmas.tolist()
    for step in range(steps):
        sigma, sigma_next = grid[step], grid[step + 1]
        direct = steps - step <= n_min
        direction = torch.zeros_like(x)
        for _ in range(1 if direct else n_avg):
            if not direct or noise is None or steps - step == n_min:
                noise = draw()  # plain sampling keeps to one noise
            source = (1 - sigma) * x + sigma * noise
            of_source, of_target = velocities(None if direct else source, source + change, sigma)
            # the source itself moves along noise - x, a straight line, where it is not asked for
            direction += of_target - (noise - x if direct else of_source)
        change = change + (sigma_next - sigma) * (direction if direct else direction / n_avg) * (
            1.0 if mask is None else mask
        )
        if on_step is not None:
            on_step(step, x + change)
    return x + change
