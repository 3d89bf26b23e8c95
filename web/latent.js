// Width and height of Z-Image Latent follow its size, and a frame shows the shape that comes out.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeAt } from "./node_at.js";

const TYPE = "ZImageLatent";
const CUSTOM = "custom";
const MULTIPLE = 16; // pixels, of both sides
const FRAME = [60, 38]; // pixels on the node, at most

const widget = (node, name) => node.widgets.find((widget) => widget.name === name);
const pictured = (node) => node.inputs?.some((input) => input.name === "image" && input.link != null);

/** Width and height that a size of the list has; none for "custom". */
function listed(size) {
  const sides = /^(\d+)x(\d+)/.exec(size);
  return sides && [Number(sides[1]), Number(sides[2])];
}

/** Width and height that come out; of a picture what the last run made of it, else none. */
function result(node) {
  if (pictured(node)) return node.zimageSize;
  let sides = listed(widget(node, "size").value) ?? [widget(node, "width").value, widget(node, "height").value];
  const megapixels = widget(node, "megapixels")?.value;
  if (megapixels) {
    const factor = Math.sqrt((megapixels * 1024 * 1024) / (sides[0] * sides[1]));
    sides = sides.map((side) => Math.max(Math.round((side * factor) / MULTIPLE), 1) * MULTIPLE);
  }
  return widget(node, "swap").value ? [sides[1], sides[0]] : sides;
}

/** Inputs that are not read are grey. */
function grey(node) {
  const picture = Boolean(pictured(node));
  widget(node, "size").disabled = picture;
  for (const name of ["width", "height"]) {
    widget(node, name).disabled = picture || widget(node, "size").value !== CUSTOM;
  }
  node.setDirtyCanvas?.(true, true);
}

/** A size chosen from the list is written into width and height. */
function set(node) {
  const sides = listed(widget(node, "size").value);
  if (sides) ["width", "height"].forEach((name, at) => (widget(node, name).value = sides[at]));
}

function after(owner, name, act) {
  const method = owner[name];
  owner[name] = function () {
    const result = method?.apply(this, arguments);
    act();
    return result;
  };
}

function draw(node, context) {
  const sides = result(node);
  if (!sides || node.flags?.collapsed || LiteGraph.vueNodesMode) return;
  const scale = Math.min(FRAME[0] / sides[0], FRAME[1] / sides[1]);
  const [width, height] = sides.map((side) => Math.max(side * scale, 2));
  const [left, middle] = [16, 46];
  context.save();
  context.strokeStyle = context.fillStyle = LiteGraph.WIDGET_SECONDARY_TEXT_COLOR ?? "#999";
  context.strokeRect(left, middle - height / 2, width, height);
  context.font = "11px Arial";
  context.textAlign = "left";
  context.fillText(sides.join(" x "), left + width + 8, middle + 4);
  context.restore();
}

app.registerExtension({
  name: "ComfyUI-ZImage.Latent",
  setup() {
    api.addEventListener("executed", ({ detail }) => {
      const node = nodeAt(detail.display_node ?? detail.node);
      if (node?.comfyClass !== TYPE || !detail.output?.size) return;
      node.zimageSize = detail.output.size;
      node.setDirtyCanvas(true, true);
    });
  },
  nodeCreated(node) {
    if (node.comfyClass !== TYPE) return;
    after(widget(node, "size"), "callback", () => {
      set(node);
      grey(node);
    });
    after(node, "onConfigure", () => grey(node));
    after(node, "onConnectionsChange", () => grey(node));
    const { onDrawForeground } = node;
    node.onDrawForeground = function (context) {
      onDrawForeground?.apply(this, arguments);
      draw(this, context);
    };
    grey(node);
  },
});
