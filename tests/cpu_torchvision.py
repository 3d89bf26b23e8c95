"""Lets torchvision's CUDA wheel import beside CPU torch: it registers fakes for operators that its library
would define.
"""

from __future__ import annotations

import torch

SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def define_missing_operators() -> None:
    if torch.version.cuda is None:
        for name, schema in SCHEMAS.items():
            if not hasattr(torch.ops.torchvision, name.split("::")[1]):
                torch.library.define(name, schema)
