"""A real ComfyUI server, a real browser, and a fresh page for each test."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.host import weight_files
from tests.host.server import PACK_NAME, ComfyServer
from tests.web.comfy_page import ComfyPage

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60_000  # milliseconds, for any one thing to appear
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="session")
def server(host_path, tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    weight_files.write_all(base / "models")
    with ComfyServer(host_path, base, "--disable-api-nodes") as server:
        yield server


@pytest.fixture(scope="session")
def our_nodes(server) -> dict[str, dict]:
    """The contract of each node of this extension, by its id."""
    contracts = server.object_info()
    return {k: v for k, v in contracts.items() if v["python_module"] == f"custom_nodes.{PACK_NAME}"}


@pytest.fixture(scope="session")
def browser():
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None or not Path(path).is_file():
        pytest.fail("No Chromium here: `apt install chromium`, or let CHROMIUM name the program of one.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory) -> Path:
    """Where the last frame of a failed test goes; with ZIMAGE_SCREENSHOTS set, of every test."""
    folder = Path(os.environ.get("ZIMAGE_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker("sampled")  # more languages and modes with --long: see modes.py


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


FAILED = pytest.StashKey[bool]()


@pytest.fixture
def open_page(server, browser, screenshots, request):
    """Opens the page as a person with these settings finds it; no script of ours may have failed there.

    advanced: whether inputs that are folded away otherwise are always shown.
    """
    contexts, pages = [], []

    def open_page(locale: str = "en", nodes_2: bool = False, advanced: bool = True) -> ComfyPage:
        settings = {
            "Comfy.TutorialCompleted": True,  # otherwise the page begins with the template browser
            "Comfy.Locale": locale,
            "Comfy.VueNodes.Enabled": nodes_2,
            "Comfy.Node.AlwaysShowAdvancedWidgets": advanced,
        }
        status, _ = server.post("/settings", settings)
        assert status == 200
        contexts.append(browser.new_context(viewport={"width": 1600, "height": 1000}))
        contexts[-1].set_default_timeout(PATIENCE)
        pages.append(ComfyPage(contexts[-1].new_page(), server.url, nodes_2))
        return pages[-1]

    yield open_page
    failed = request.node.stash.get(FAILED, True)
    for number, comfy in enumerate(pages):
        if failed or "ZIMAGE_SCREENSHOTS" in os.environ:
            name = re.sub(r"\W+", "-", request.node.name).strip("-")
            path = screenshots / f"{name}-{number}.png"
            comfy.page.screenshot(path=path)
            request.node.add_report_section("teardown", "screenshot", str(path))
    for context in contexts:
        context.close()
    assert [error for comfy in pages for error in comfy.script_errors] == []
