"""A test-only ComfyUI extension: streams weights on the CPU as --lowvram and --novram do on a card.

On the CPU ComfyUI always loads models whole, and takes neither option beside --cpu. With this file in
custom_nodes the environment variable STREAM_ON_CPU decides: --novram keeps nothing loaded, --lowvram half.
"""

import os

from comfy.model_management import LoadedModel

NODE_CLASS_MAPPINGS = {}
SHARE = {"--novram": 0.0, "--lowvram": 0.5}[os.environ["STREAM_ON_CPU"]]
load = LoadedModel.model_load


def load_share(self, lowvram_model_memory=0, **options):
    return load(self, max(0.1, SHARE * self.model.model_size()), **options)


LoadedModel.model_load = load_share
