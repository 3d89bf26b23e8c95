"""SigLIP 2 as the eye of the omni weights: a picture of any shape -> a grid of features (arXiv 2502.14786).

The network is the transformers library's; the picture keeps its shape ("naflex"), so nothing is cropped.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import VisionConfig
from .arithmetic import compute_dtype
from .operations import follow_inputs


class VisionEncoder(nn.Module):
    """Parameters have the names of SigLIP 2's own files: `vision_model.*`, without the pooling head."""

    def __init__(
        self,
        config: VisionConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        from transformers import Siglip2VisionConfig, Siglip2VisionModel  # takes seconds to import

        super().__init__()
        self.config = config
        layers = Siglip2VisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            patch_size=config.patch_size,
            num_patches=config.max_num_patches,
            vision_use_head=False,
        )
        with torch.device(device or "cpu"):
            model = follow_inputs(Siglip2VisionModel(layers).to(dtype))
        self.vision_model = getattr(model, "vision_model", model)  # the library had one more shell up to 4.x

    def features(self, image: Tensor) -> Tensor:
        """image: [B, H, W, 3 or more] in [0, 1] -> last hidden state [B, rows, columns, hidden_size].

        The grid has the picture's shape and at most max_num_patches cells.
        """
        patch = self.config.patch_size
        rows, columns = patch_grid(*image.shape[1:3], self.config.max_num_patches)
        pixels = F.interpolate(
            image[..., :3].movedim(-1, 1).float(),
            size=(rows * patch, columns * patch),
            mode="bilinear",
            antialias=True,
        )
        pixels = (
            255 * pixels.clamp(0, 1)
        ).round() / 127.5 - 1  # whole levels, as of a picture that was saved
        patches = pixels.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # [B, 3, rows, p, columns, p]
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        shapes = torch.tensor([[rows, columns]]).expand(len(image), 2)
        weight = self.vision_model.post_layernorm.weight
        dtype = compute_dtype(weight.dtype, weight.device)
        self.vision_model.embeddings.to(dtype)  # they take pixels in their own type, and are small
        hidden = self.vision_model(patches.to(weight.device, dtype), None, shapes).last_hidden_state
        return hidden.unflatten(1, (rows, columns))


def patch_grid(height: int, width: int, most: int) -> tuple[int, int]:
    """Rows and columns of the finest grid of square cells that has at most `most` over a picture.

    A cell that is begun counts.
    """
    grids = []  # (cells per pixel, rows, columns): those scales at which a side is filled by whole cells
    for count in range(1, most + 1):
        grids.append((count / height, count, -(-width * count // height)))
        grids.append((count / width, -(-height * count // width), count))
    _, rows, columns = max(grid for grid in grids if grid[1] * grid[2] <= most)
    return rows, columns
