"""The page of a running ComfyUI: what a person does there, and what a person sees."""

from __future__ import annotations

import base64
import re
import time

from playwright.sync_api import ConsoleMessage, Error, Locator, Page

from tests.host.server import PACK_NAME
from tests.web.frontend import frontend

RUN = re.compile("^(Run|\u8fd0\u884c)$")  # in English and Chinese
OURS = f"/extensions/{PACK_NAME}/"
# Whether the view is where it was when this was last asked.
AT_REST = """() => {
    const view = [app.canvas.ds.scale, ...app.canvas.ds.offset].join()
    const still = view == window.lastView
    window.lastView = view
    return still
}"""
# What the next frames draw on the canvas: texts, and the addresses of pictures.
DRAWN = """async () => {
    const context = CanvasRenderingContext2D.prototype
    const {fillText, drawImage} = context
    const texts = [], pictures = []
    context.fillText = function (text, ...place) {
        texts.push(String(text))
        return fillText.call(this, text, ...place)
    }
    context.drawImage = function (picture, ...place) {
        if (picture.src) pictures.push(picture.src)
        return drawImage.call(this, picture, ...place)
    }
    try {
        for (let frame = 0; frame < 3; frame++) {
            app.canvas.setDirty(true, true)
            await new Promise(requestAnimationFrame)
        }
    } finally {
        Object.assign(context, {fillText, drawImage})
    }
    return {texts, pictures}
}"""
OVERLAPPING = """nodes2 => {
    const box = node => {
        const element = !nodes2 ? null : document.querySelector(`[data-node-id="${node.id}"]`)
        const height = element
            ? element.getBoundingClientRect().height / app.canvas.ds.scale - 30 : node.size[1]
        return [node.pos[0], node.pos[1] - 30, node.pos[0] + node.size[0], node.pos[1] + height]
    }
    const boxes = app.graph.nodes.map(node => [node.title, box(node)])
    const meet = (a, b) => a[0] < b[2] - 1 && b[0] < a[2] - 1 && a[1] < b[3] - 1 && b[1] < a[3] - 1
    return boxes.flatMap(([name, a], i) =>
        boxes.slice(i + 1).filter(([, b]) => meet(a, b)).map(([other]) => [name, other]))
}"""
# Follows a run closer than a test could ask: the tab's title, and the pictures on one node.
WATCH = """([id, nodes2]) => {
    const seen = window.seen = {titles: [], pictures: []}
    const add = (list, item) => list.includes(item) || list.push(item)
    setInterval(() => {
        add(seen.titles, document.title)
        const pictures = nodes2
            ? document.querySelectorAll(`[data-node-id="${id}"] img`)
            : app.graph.nodes.find(node => node.id == id).imgs ?? []
        for (const picture of pictures) if (picture.naturalWidth) add(seen.pictures, picture.src)
    }, 20)
}"""


class ComfyPage:
    """`nodes_2` is ComfyUI's choice: nodes drawn on a canvas, or nodes as parts of the document."""

    def __init__(self, page: Page, url: str, nodes_2: bool):
        self.page, self.nodes_2 = page, nodes_2
        self.script_errors: list[str] = []  # those of this extension's own scripts
        page.on("pageerror", self.note_error)
        page.on("console", self.note_console)
        # The banner that offers Nodes 2.0 lies over the canvas.
        page.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
        page.goto(url)
        page.wait_for_function("window.app?.vueAppReady && window.app.graph?.nodes.length")
        self.wait_until_at_rest()
        self.frontend = frontend(page.evaluate("window.__COMFYUI_FRONTEND_VERSION__"))

    def note_error(self, error: Error) -> None:
        text = f"{error.message}\n{error.stack}"
        if OURS in text:
            self.script_errors.append(text)

    def note_console(self, message: ConsoleMessage) -> None:
        text = f"{message.text} ({message.location['url']})"
        if message.type == "error" and OURS in text and ".js" in text:
            self.script_errors.append(text)

    # -- doing

    def load(self, workflow: dict) -> None:
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)

    def drop(self, name: str, kind: str, content: bytes) -> None:
        """Drop a file on the canvas."""
        parcel = self.page.evaluate_handle(
            """([name, type, content]) => {
                const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0))
                const parcel = new DataTransfer()
                parcel.items.add(new File([bytes], name, {type}))
                return parcel
            }""",
            [name, kind, base64.b64encode(content).decode()],
        )
        place = {"clientX": 800, "clientY": 500, "dataTransfer": parcel}
        self.page.dispatch_event("#graph-canvas", "dragover", place)
        self.page.dispatch_event("#graph-canvas", "drop", place)

    def clear(self) -> None:
        # One by one, so that no id comes twice on a page.
        self.page.evaluate(
            "app.canvas.deselectAll(); for (const node of [...app.graph.nodes]) app.graph.remove(node)"
        )
        self.page.get_by_test_id("more-options-button").wait_for(state="hidden")  # the tools of the selected

    def add_alone(self, node_type: str) -> None:
        """A canvas with one new node in the middle, wide enough for every text on it; it is clicked on."""
        self.clear()
        node_id, place = self.page.evaluate(
            """async type => {
                const node = LiteGraph.createNode(type)
                app.graph.add(node)
                node.setSize([500, node.size[1]])
                app.canvas.ds.scale = 0.75 // the highest node and the tools above it are on the page
                app.canvas.centerOnNode(node)
                // A click finds only nodes that have been drawn.
                for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame)
                const title = [node.pos[0] + 100, node.pos[1] - LiteGraph.NODE_TITLE_HEIGHT / 2]
                return [node.id, app.canvas.convertOffsetToCanvas(title)]
            }""",
            node_type,
        )
        if self.nodes_2:
            self.node(node_id).wait_for()
        self.page.mouse.click(*place)

    def run(self) -> None:
        self.page.get_by_role("button", name=RUN).first.click()

    def sidebar(self, name: str) -> None:
        """Open a tab of the side bar by the start of its English name."""
        self.page.locator(f".side-bar-button[aria-label^='{name}']").click()

    def wait_until_at_rest(self) -> None:
        """Until the view has glided to the graph."""
        self.page.wait_for_function(AT_REST, polling=500)

    # -- seeing

    def node(self, node_id: int | str) -> Locator:
        """A node of Nodes 2.0."""
        return self.page.locator(f".lg-node[data-node-id='{node_id}']")

    def texts(self) -> list[str]:
        """What is to be read on the nodes."""
        if not self.nodes_2:
            return self.page.evaluate(DRAWN)["texts"]
        return [
            line for node in self.page.locator(".lg-node").all() for line in node.inner_text().split("\n")
        ]

    def never_shown(self, texts: set[str], seconds: float = 10.0) -> set[str]:
        """Those of the texts that do not come to be read on the nodes."""
        deadline = time.monotonic() + seconds
        while (absent := texts - set(self.texts())) and time.monotonic() < deadline:
            self.page.wait_for_timeout(100)
        return absent

    def bring_into_view(self, node_id: int) -> None:
        """A canvas loads the pictures of a node when it first draws it."""
        self.page.evaluate(
            "id => app.canvas.centerOnNode(app.graph.nodes.find(node => node.id == id))", node_id
        )

    def pictures(self, node_id: int | str) -> list[str]:
        """The addresses of the pictures on a node that are loaded and shown."""
        if self.nodes_2:
            images = self.node(node_id).locator("img:visible").all()
            return [
                image.get_attribute("src") for image in images if image.evaluate("img => img.naturalWidth")
            ]
        on_node = self.page.evaluate(
            "id => (app.graph.nodes.find(node => node.id == id).imgs ?? [])"
            ".filter(img => img.naturalWidth).map(img => img.src)",
            node_id,
        )
        drawn = self.page.evaluate(DRAWN)["pictures"]
        return [address for address in on_node if address in drawn]

    def graph(self) -> dict:
        """The graph on the canvas, in UI form."""
        return self.page.evaluate("app.graph.serialize()")

    def watch(self, node_id: int | str) -> None:
        """From now on note the tab's titles and the pictures on a node, see `seen`."""
        self.page.evaluate(WATCH, [node_id, self.nodes_2])

    def seen(self) -> dict[str, list[str]]:
        return self.page.evaluate("window.seen")

    def overlapping(self) -> list[list[str]]:
        """Titles of nodes that lie over one another, as large as they are now."""
        return self.page.evaluate(OVERLAPPING, self.nodes_2)

    @property
    def alarm(self) -> Locator:
        return self.page.locator(self.frontend.alarm)

    def what_went_wrong(self) -> Locator:
        """Wait for the alarm and go where all is said; that may still be filling."""
        self.alarm.first.wait_for()
        if self.frontend.to_details:
            self.page.locator(self.frontend.to_details).click()
        return self.page.locator(self.frontend.details)
