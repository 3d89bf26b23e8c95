// Width and height of Z-Image Latent follow its size, and a frame shows the shape that comes out.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { hideWhile } from "./hidden.js";
import { nodeAt } from "./node_at.js";

const TYPE = "ZImageLatent";
const CUSTOM = "custom";
const SIDES = ["width", "height"];
const READ = ["size", "width", "height", "swap", "megapixels"]; // what decides about the sides
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
  for (const name of SIDES) {
    widget(node, name).disabled = picture || widget(node, "size").value !== CUSTOM;
  }
}

/** A size chosen from the list is written into width and height. */
function set(node) {
  for (const [at, side] of (listed(widget(node, "size").value) ?? []).entries()) {
    const changed = widget(node, SIDES[at]);
    changed.value = side;
    changed.callback?.(side); // an older Nodes 2.0 shows what it is told so
  }
}

/** A side that was changed all the same, where a page does not grey inputs, makes the size the person's own. */
function own(node, at) {
  const sides = listed(widget(node, "size").value);
  if (!sides || sides[at] === widget(node, SIDES[at]).value) return;
  widget(node, "size").value = CUSTOM;
  widget(node, "size").callback?.(CUSTOM);
}

function after(owner, name, act) {
  const method = owner[name];
  owner[name] = function () {
    const result = method?.apply(this, arguments);
    act();
    return result;
  };
}

/** Width and height of the frame that stands for a picture of these sides. */
function frame(sides) {
  const scale = Math.min(FRAME[0] / sides[0], FRAME[1] / sides[1]);
  return sides.map((side) => Math.max(side * scale, 2));
}

/** The frame on a canvas, in the room beside the outputs. */
function draw(node, context) {
  const sides = result(node);
  if (!sides || node.flags?.collapsed || LiteGraph.vueNodesMode || app.canvas.low_quality) return;
  const [[width, height], left, middle] = [frame(sides), 16, 46];
  context.save();
  context.strokeStyle = context.fillStyle = LiteGraph.WIDGET_SECONDARY_TEXT_COLOR ?? "#999";
  context.strokeRect(left, middle - height / 2, width, height);
  context.font = "11px Arial";
  context.textAlign = "left";
  context.fillText(sides.join(" x "), left + width + 8, middle + 4);
  context.restore();
}

/** The frame as a part of the document, for Nodes 2.0; returns what brings it up to date. */
function addFrame(node) {
  const [box, picture, text] = ["div", "div", "span"].map((tag) => document.createElement(tag));
  const style = { display: "flex", alignItems: "center", gap: "8px", padding: "0 8px", fontSize: "11px", opacity: 0.7 };
  Object.assign(box.style, style, { height: `${FRAME[1] + 4}px` });
  picture.style.border = "1px solid currentColor";
  box.append(picture, text);
  const added = node.addDOMWidget("frame", "ZIMAGE_FRAME", box, { serialize: false, getMinHeight: () => FRAME[1] + 4 });
  added.serialize = false; // no value that a workflow would keep
  hideWhile(added, () => !LiteGraph.vueNodesMode);
  return () => {
    const sides = result(node);
    text.textContent = sides?.join(" x ") ?? "";
    const [width, height] = sides ? frame(sides) : [0, 0];
    Object.assign(picture.style, { width: `${width}px`, height: `${height}px` });
  };
}

app.registerExtension({
  name: "ComfyUI-ZImage.Latent",
  setup() {
    api.addEventListener("executed", ({ detail }) => {
      const node = nodeAt(detail.display_node ?? detail.node);
      if (node?.comfyClass !== TYPE || !detail.output?.size) return;
      node.zimageSize = detail.output.size;
      node.zimageRefresh();
    });
  },
  nodeCreated(node) {
    if (node.comfyClass !== TYPE) return;
    const update = addFrame(node);
    const refresh = (node.zimageRefresh = () => {
      grey(node);
      update();
      node.setDirtyCanvas?.(true, true);
    });
    after(widget(node, "size"), "callback", () => set(node));
    SIDES.forEach((name, at) => after(widget(node, name), "callback", () => own(node, at)));
    for (const name of READ) after(widget(node, name), "callback", refresh);
    for (const name of ["onConfigure", "onConnectionsChange"]) after(node, name, refresh);
    const { onDrawForeground } = node;
    node.onDrawForeground = function (context) {
      onDrawForeground?.apply(this, arguments);
      draw(this, context);
    };
    refresh();
  },
});
