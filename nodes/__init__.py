"""The nodes that people wire, one family per file."""

from .accelerate import ZImageAccelerate
from .conditioning import ZImageTextEncode
from .control import ZImageControl, ZImageControlLoader
from .diversity import ZImageDiversity
from .edit import ZImageEdit
from .enhancer import ZImagePromptEnhancer
from .guidance import ZImageGuider
from .latent import ZImageLatent
from .loaders import ZImageLoader
from .part_loaders import ZImageModelLoader, ZImageTextEncoderLoader, ZImageVAELoader, ZImageVisionLoader
from .regional import ZImageRegionalPrompt
from .sampling import ZImageSigmas, ZImageTurboSampler

NODES = (
    ZImageLoader,
    ZImageModelLoader,
    ZImageTextEncoderLoader,
    ZImageVAELoader,
    ZImageVisionLoader,
    ZImageAccelerate,
    ZImageControlLoader,
    ZImageControl,
    ZImageTextEncode,
    ZImagePromptEnhancer,
    ZImageRegionalPrompt,
    ZImageLatent,
    ZImageTurboSampler,
    ZImageSigmas,
    ZImageGuider,
    ZImageEdit,
    ZImageDiversity,
)
