"""The nodes that people wire, one family per file."""

from .conditioning import ZImageTextEncode
from .latent import ZImageLatent
from .loaders import ZImageLoader
from .sampling import ZImageSigmas, ZImageTurboSampler

NODES = (ZImageLoader, ZImageTextEncode, ZImageLatent, ZImageTurboSampler, ZImageSigmas)
