"""The chat servers that this host's owner set up: a workflow names one, address and key stay here."""

from __future__ import annotations

import logging
from pathlib import Path

import folder_paths

from ....zimage_core.prompt.endpoint_settings import Endpoint, EndpointError, read_endpoints

SETTINGS = "zimage_endpoints.json"


def settings_file() -> Path:
    """Above the folders of the single users: pages cannot write it."""
    return Path(folder_paths.get_user_directory()) / SETTINGS


def endpoint_names() -> list[str]:
    """Empty where there is no settings file, or none that can be read: then the log says why."""
    if not settings_file().exists():
        return []
    try:
        return list(read_endpoints(settings_file()))
    except EndpointError as error:
        logging.error("Z-Image endpoints: %s", error)
        return []


def endpoint(name: str) -> Endpoint:
    """The endpoint of that name, read anew. Raises EndpointError naming the file and the names in it."""
    path = settings_file()
    if not path.exists():
        raise EndpointError(
            f"No endpoint {name!r}: there is no {path}. Create it, see this node's help page."
        )
    endpoints = read_endpoints(path)
    if name not in endpoints:
        known = ", ".join(map(repr, endpoints)) or "none"
        raise EndpointError(f"No endpoint {name!r} in {path}: it has {known}. Choose one of these or add it.")
    return endpoints[name]
