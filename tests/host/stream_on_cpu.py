"""A test-only ComfyUI extension: --novram and --lowvram stream weights on the CPU too.

ComfyUI loads a model whole when it runs on the CPU, whatever the option. With this file in custom_nodes the
option decides there as well: nothing stays loaded (--novram) or half of the model does (--lowvram).
"""

from comfy.cli_args import args
from comfy.model_management import LoadedModel

NODE_CLASS_MAPPINGS = {}
SHARE = 0.0 if args.novram else 0.5
load_whole = LoadedModel.model_load


def load_share(self, lowvram_model_memory=0, **options):
    return load_whole(self, max(0.1, SHARE * self.model.model_size()), **options)


LoadedModel.model_load = load_share
