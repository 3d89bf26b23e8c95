// On a canvas each text box has its label, and the main one of a node takes the room that is free.
import { app } from "../../scripts/app.js";

const MAIN = { ZImagePromptEnhancer: "text" }; // where it is not the first one
const MARGIN = 15; // pixels around a box; the label stands in it
const MAIN_HEIGHT = 110; // pixels, at least
const HEIGHT = 80; // of the others
const NOTE = "$$node-text-preview"; // the page's own, for what a node says when it runs
const NOTE_LINE = 16; // pixels
const NOTE_HEIGHT = [40, 58]; // least and most that a note asks for; it takes more where there is room

const boxes = (node) => node.widgets?.filter((widget) => widget.type === "customtext") ?? [];

function arrange(node) {
  const all = boxes(node);
  const main = all.find((box) => box.name === MAIN[node.comfyClass]) ?? all[0];
  for (const box of all) {
    box.options.margin = MARGIN;
    box.options.getMinHeight = () => (box === main ? MAIN_HEIGHT : HEIGHT);
    if (box !== main) box.options.getMaxHeight = () => HEIGHT;
  }
}

/** A note is as high as its lines, so that it takes no room from the text box. */
function limitNote(node) {
  const note = node.widgets?.find((widget) => widget.name === NOTE);
  if (!note?.options || note.options.getMaxHeight) return;
  const height = () => {
    const wide = Math.max(node.size[0] / 7, 20); // letters in a line, about
    const lines = String(note.value ?? "").split("\n");
    return 26 + NOTE_LINE * lines.reduce((sum, line) => sum + Math.max(Math.ceil(line.length / wide), 1), 0);
  };
  note.options.getMinHeight = () => Math.min(Math.max(height(), NOTE_HEIGHT[0]), NOTE_HEIGHT[1]);
  note.options.getMaxHeight = () => Math.max(height(), NOTE_HEIGHT[0]);
}

function drawLabels(node, context) {
  context.save();
  context.font = "11px Arial";
  context.textAlign = "left";
  context.fillStyle = LiteGraph.WIDGET_SECONDARY_TEXT_COLOR ?? "#999";
  for (const box of boxes(node)) {
    if (box.y === undefined || node.isWidgetVisible?.(box) === false || box.computedDisabled) continue;
    context.fillText(box.label ?? box.name, MARGIN, box.y + MARGIN - 4);
  }
  context.restore();
}

app.registerExtension({
  name: "ComfyUI-ZImage.TextBoxes",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("ZImage")) return;
    arrange(node);
    const { onDrawForeground } = node;
    node.onDrawForeground = function (context) {
      onDrawForeground?.apply(this, arguments);
      if (LiteGraph.vueNodesMode) return;
      limitNote(this);
      if (!this.flags?.collapsed && !app.canvas.low_quality) drawLabels(this, context);
    };
  },
});
