"""What every test shares."""

from tests.host.launch import stand_in_for_missing_ops

# transformers and diffusers import torchvision when they see it.
stand_in_for_missing_ops()
