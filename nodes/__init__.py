"""The nodes that people wire, one family per file."""

from .accelerate import ZImageAccelerate
from .conditioning import ZImageTextEncode
from .control import ZImageControl
from .diversity import ZImageDiversity
from .edit import ZImageEdit
from .enhancer import ZImagePromptEnhancer
from .guidance import ZImageGuider
from .host.built_in import list_example_lora
from .host.page.errors import bare_names
from .host.page.template_order import order_templates
from .latent import ZImageLatent
from .loaders import ZImageLoader
from .lora import ZImageLoraLoader
from .part_loaders import PART_LOADERS
from .picture_text import ZImagePictureText
from .regional import ZImageRegionalPrompt
from .sampling import ZImageSigmas, ZImageTurboSampler
from .save_image import ZImageSaveImage
from .save_quantized import ZImageSaveQuantized
from .speed import ZImageSpeed
from .style import ZImageStyle
from .train_lora import ZImageTrainLora
from .training_data import ZImageTrainingData
from .variations import ZImageSheet, ZImageVariations
from .wildcards import ZImageWildcards

NODES = (
    ZImageLoader,
    *(PART_LOADERS[widget] for widget in ("transformer", "text_encoder", "vae", "vision")),
    ZImageLoraLoader,
    ZImageAccelerate,
    PART_LOADERS["control"],
    ZImageControl,
    ZImageTextEncode,
    ZImagePromptEnhancer,
    ZImageStyle,
    ZImageWildcards,
    ZImageRegionalPrompt,
    ZImageLatent,
    ZImageTurboSampler,
    ZImageSigmas,
    ZImageGuider,
    ZImageEdit,
    ZImagePictureText,
    ZImageDiversity,
    ZImageVariations,
    ZImageSheet,
    ZImageSaveImage,
    ZImageSaveQuantized,
    ZImageSpeed,
    ZImageTrainingData,
    ZImageTrainLora,
)

bare_names()
list_example_lora()
order_templates()
