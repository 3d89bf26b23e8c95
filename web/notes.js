// The texts that nodes have under them: as high as they need to be, and gone when a run has nothing to say.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { nodeAt } from "./node_at.js";

const SHOWN = "zimage.text_shown";
const NOTHING_TO_SAY = "zimage.nothing_to_say";
const TEXT = "$$node-text-preview"; // the page's own name for such a text
const LETTER = 12; // pixels high, and at most as wide
const LINE = 16;
const AROUND = { width: 52, height: 28 }; // pixels
const MOST_LINES = 8; // longer texts are scrolled

const pen = document.createElement("canvas").getContext("2d");
const place = (node) => node?.widgets?.findIndex((widget) => widget.name === TEXT) ?? -1;

/** How many lines the page breaks a text into, which it does after any letter. */
function lines(text, width) {
  pen.font = `${LETTER}px ${getComputedStyle(document.body).fontFamily}`;
  const room = Math.max(2 * LETTER, width - AROUND.width);
  const broken = (length) => (length <= room ? 1 : Math.ceil(length / (room - LETTER)));
  return text.split("\n").reduce((sum, line) => sum + broken(pen.measureText(line).width), 0);
}

function fit(node) {
  const widget = node?.widgets?.[place(node)];
  if (!widget) return;
  const all = lines(String(widget.value).replace(/&#\d+;/g, "_"), node.size[0]);
  const [least, most] = [Math.min(all, MOST_LINES), all].map((count) => count * LINE + AROUND.height);
  widget.options.getMinHeight = () => least;
  widget.options.getMaxHeight = () => most; // what room is left is for the prompt
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  node.setDirtyCanvas?.(true, true);
}

function remove(node) {
  const index = place(node);
  if (index < 0) return;
  node.widgets[index].onRemove?.();
  node.widgets.splice(index, 1);
  node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "ComfyUI-ZImage.Notes",
  setup() {
    api.addEventListener(SHOWN, ({ detail }) => fit(nodeAt(detail.node)));
    api.addEventListener(NOTHING_TO_SAY, ({ detail }) => remove(nodeAt(detail.node)));
  },
});
