// On a canvas each text box has its label, and the main one of a node takes the room that is free.
import { app } from "../../scripts/app.js";

const MAIN = { ZImagePromptEnhancer: "text" }; // where it is not the first one
const MARGIN = 15; // pixels around a box; the label stands in it
const MAIN_HEIGHT = 110; // pixels, at least
const HEIGHT = 80; // of the others

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
      if (LiteGraph.vueNodesMode || this.flags?.collapsed || app.canvas.low_quality) return;
      drawLabels(this, context);
    };
  },
});
