// Z-Image Train LoRA shows its losses, its latest samples and the time left while it runs, and afterwards.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeAt } from "./node_at.js";
import { say } from "./translations.js";

const TYPE = "ZImageTrainLora";
const EVENT = "zimage.training";
const HEIGHT = 210; // pixels on the node
const CURVE = [300, 60]; // units of the drawing
const SVG = "http://www.w3.org/2000/svg";

function element(tag, style, parent) {
  const made = document.createElement(tag);
  Object.assign(made.style, style);
  parent?.append(made);
  return made;
}

/** Minutes and seconds, with hours where there are some. */
function clock(seconds) {
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  return (parts[0] ? parts : parts.slice(1)).map((part) => String(part).padStart(2, "0")).join(":");
}

function words({ stage, done, total, step, steps, smooth, left, begun }) {
  if (stage) return `${say(`training_${stage}`)} ${done} / ${total}`;
  if (!step) return null;
  const said = [`${say("training_step")} ${step} / ${steps}`, `${say("training_loss")} ${smooth.toPrecision(3)}`];
  if (step < steps) said.push(`${say("training_left")} ${clock(left)}`);
  if (begun) said.push(`${say("training_begun")} ${begun}`);
  return said.join(" · ");
}

/** Points of [step, loss] on the drawing, its height from the lowest to the highest loss. */
function line(points) {
  const [first, last] = [points[0][0], points.at(-1)[0]];
  const losses = points.map(([, loss]) => loss);
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const x = (step) => (CURVE[0] * (step - first)) / Math.max(1, last - first);
  const y = (loss) => CURVE[1] * (1 - (loss - low) / (high - low || 1));
  return points.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
}

/** An element, and what shows the fields of an event on it. */
function panel() {
  const box = element("div", { display: "flex", flexDirection: "column", gap: "4px", overflow: "hidden", visibility: "hidden" });
  box.dataset.testid = "zimage-training";
  const text = element("div", { font: "12px sans-serif", color: "var(--input-text, #ccc)" }, box);
  const drawing = box.appendChild(document.createElementNS(SVG, "svg"));
  drawing.setAttribute("viewBox", `-2 -2 ${CURVE[0] + 4} ${CURVE[1] + 4}`);
  drawing.setAttribute("preserveAspectRatio", "none");
  Object.assign(drawing.style, { width: "100%", flex: "0 0 64px" });
  const curve = drawing.appendChild(document.createElementNS(SVG, "polyline"));
  for (const [name, value] of Object.entries({ fill: "none", stroke: "#4a9eda", "vector-effect": "non-scaling-stroke" })) {
    curve.setAttribute(name, value);
  }
  const row = element("div", { display: "flex", gap: "4px", flex: "1 1 0", minHeight: "0" }, box);
  let shown = "";
  return {
    box,
    show(detail) {
      if (detail.cancelled) text.textContent = `${say("training_cancelled")} ${text.textContent}`;
      text.textContent = words(detail) ?? text.textContent;
      if (detail.curve?.length > 1) curve.setAttribute("points", line(detail.curve));
      const addresses = (detail.samples ?? []).map((picture) => api.apiURL(`/view?${new URLSearchParams(picture)}`));
      if (!detail.samples || addresses.join() === shown) return;
      shown = addresses.join();
      row.replaceChildren(
        ...addresses.map((src) => {
          const picture = element("img", { objectFit: "contain", flex: "1 1 0", minWidth: "0", height: "100%" });
          picture.alt = `${say("training_step")} ${detail.sampled}`;
          picture.title = picture.alt;
          return Object.assign(picture, { src });
        })
      );
    },
  };
}

/** Puts an empty panel on a node and returns what fills it. */
function addPanel(node) {
  const { box, show } = panel();
  let height = 0; // nothing is there before the first run
  const widget = node.addDOMWidget("training", "ZIMAGE_TRAINING", box, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => height,
  });
  widget.serialize = false; // it has no value that a workflow would keep
  return (detail) => {
    if (detail.cancelled && !height) return; // before the panel had anything to say
    show(detail);
    if (height) return;
    height = HEIGHT;
    Object.assign(box.style, { minHeight: `${HEIGHT}px`, visibility: "visible" });
    const [width, least] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], least)]);
    app.graph.setDirtyCanvas(true, true);
  };
}

app.registerExtension({
  name: "ComfyUI-ZImage.Training",
  setup() {
    api.addEventListener(EVENT, ({ detail }) => nodeAt(detail.node)?.zimageTraining?.(detail));
    api.addEventListener("execution_interrupted", ({ detail }) => {
      nodeAt(detail.node_id)?.zimageTraining?.({ cancelled: true });
    });
  },
  nodeCreated(node) {
    if (node.comfyClass !== TYPE) return;
    node.zimageTraining = addPanel(node);
    const { onExecuted } = node;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.training?.[0]) node.zimageTraining(output.training[0]);
    };
  },
});
