"""ComfyUI-ZImage: ComfyUI imports this folder and asks `comfy_entrypoint` for its nodes."""

import logging

WEB_DIRECTORY = "./web"

try:
    from comfy_api.latest import ComfyExtension
except ImportError:
    logging.getLogger(__name__).error(
        "ComfyUI-ZImage needs ComfyUI 0.3.75 or newer (comfy_api.latest is missing): update it."
    )
else:
    from .nodes import NODES

    class ZImageExtension(ComfyExtension):
        """What the host asks for its node list."""

        async def get_node_list(self) -> list:
            return list(NODES)

    async def comfy_entrypoint() -> ComfyExtension:
        return ZImageExtension()
