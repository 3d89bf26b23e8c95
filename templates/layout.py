"""Where the nodes of a template lie: columns side by side, in each the nodes one below the other."""

from __future__ import annotations

import math
import unicodedata

TOP, LEFT = 120, 40  # pixels on the canvas
TITLE = 30  # above a node's position
BESIDE, BELOW = 40, 40  # between columns, and between a node and the title of the next
NODE_WIDTH = 300
HEIGHTS = {  # pixels, enough for what the node shows when it has run
    "CLIPLoader": 104,
    "CLIPTextEncode": 180,
    "Canny": 82,
    "FeatherMask": 130,
    "GetImageSize": 66,
    "ImageCompositeMasked": 150,
    "ImageCrop": 130,
    "ImageFlip": 58,
    "ImageFromBatch": 82,
    "ImagePadForOutpaint": 180,
    "ImageScale": 150,
    "ImageScaleBy": 82,
    "KSampler": 530,
    "LatentUpscaleBy": 82,
    "LoadImage": 330,
    "LoraLoaderModelOnly": 82,
    "MaskComposite": 130,
    "PreviewImage": 430,
    "RandomNoise": 82,
    "SamplerCustomAdvanced": 390,
    "SaveImage": 470,
    "SolidMask": 106,
    "UNETLoader": 82,
    "ZImageAccelerate": 90,
    "ZImageControl": 230,
    "ZImageControlLoader": 110,
    "ZImageDiversity": 110,
    "ZImageEdit": 980,
    "ZImageGuider": 144,
    "ZImageLatent": 320,
    "ZImageLoader": 260,
    "ZImageLoraLoader": 500,
    "ZImageModelLoader": 140,
    "ZImagePictureText": 330,
    "ZImagePromptEnhancer": 800,
    "ZImageRegionalPrompt": 130,
    "ZImageSigmas": 104,
    "ZImageSaveImage": 560,
    "ZImageSaveQuantized": 200,
    "ZImageSheet": 130,
    "ZImageSpeed": 150,
    "ZImageStyle": 300,
    "ZImageTextEncode": 400,
    "ZImageTrainLora": 1010,
    "ZImageTrainingData": 560,
    "ZImageTextEncoderLoader": 110,
    "ZImageTurboSampler": 510,
    "ZImageVAELoader": 110,
    "ZImageVariations": 180,
    "ZImageVisionLoader": 120,
    "ZImageWildcards": 420,
}
OTHER_HEIGHT = 60  # of a node with at most one widget
LINE, LETTER = 16, 5.8  # pixels of a note's text
PAGE = (1480, 820)  # pixels of the canvas that nothing covers, in a window of 1600 x 1000
CORNER = (80, 120)  # where they begin


def placed(nodes: dict[str, dict], columns: list[dict], notes: list[str]) -> None:
    """Give each node its place and size; each note goes to the foot of the shortest column.

    Raises ValueError for a node that no column has.
    """
    x, left, feet = LEFT, set(nodes) - set(notes), []
    for column in columns:
        width = column.get("width", NODE_WIDTH)
        feet.append([TOP, x, width])
        for name in column["nodes"]:
            if name in nodes:  # the other variant may have it
                put(nodes[name], feet[-1])
                left.discard(name)
        x += width + BESIDE
    for name in notes:
        put(nodes[name], min(feet))
    if left:
        raise ValueError(f"no column has {', '.join(sorted(left))}")


def put(node: dict, foot: list[int]) -> None:
    """Put a node at the foot of a column, [y, x, width], and move that down."""
    y, x, width = foot
    height = height_of(node, width)
    node["pos"], node["size"] = [x, y], [width, height]
    foot[0] += height + BELOW + TITLE


def height_of(node: dict, width: int) -> int:
    if node["type"] != "MarkdownNote":
        return HEIGHTS.get(node["type"], OTHER_HEIGHT)
    lines = 0.0
    for line in node["widgets_values"][0].split("\n"):
        shown = line.split("](")[0] + "".join(part.split(")", 1)[1] for part in line.split("](")[1:])
        wide = sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in shown)
        lines += max(0.6, math.ceil(wide * LETTER / (width - 40)) * (1.5 if line.startswith("#") else 1))
    return round(lines * LINE + 40)


def view(nodes: list[dict]) -> dict:
    """The page's scale and offset at which all nodes are to be seen."""
    left, top = (min(node["pos"][axis] for node in nodes) for axis in (0, 1))
    right, bottom = (max(node["pos"][axis] + node["size"][axis] for node in nodes) for axis in (0, 1))
    scale = round(min(1.0, PAGE[0] / (right - left), PAGE[1] / (bottom - top + TITLE)), 3)
    offset = [round(CORNER[0] / scale - left), round(CORNER[1] / scale - top + TITLE)]
    return {"scale": scale, "offset": offset}
