// The edit node shows the picture before and after, one over the other: drag across it, or use the arrow keys.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeAt } from "./node_at.js";

const NODE = "ZImageEdit";
const HEIGHT = 260; // pixels, at least
const PREVIEW = "$$canvas-image-preview"; // the page's own widget

function part(tag, style) {
  const element = document.createElement(tag);
  Object.assign(element.style, { position: "absolute", inset: "0", width: "100%", height: "100%" }, style);
  return element;
}

/** An element and what shows two picture addresses on it. */
function comparison() {
  const box = part("div", { position: "relative", overflow: "hidden", visibility: "hidden" });
  box.dataset.testid = "zimage-before-after";
  const [after, before] = ["after", "before"].map((name) => {
    const picture = part("img", { objectFit: "contain", pointerEvents: "none" });
    picture.alt = name;
    return picture;
  });
  const line = part("div", { width: "2px", background: "white", boxShadow: "0 0 3px black", pointerEvents: "none" });
  const slider = part("input", { margin: "0", opacity: "0", cursor: "ew-resize" });
  Object.assign(slider, { type: "range", min: 0, max: 100, step: 0.5, value: 50 });
  slider.setAttribute("aria-label", "before / after");
  const split = () => {
    line.style.left = `calc(${slider.value}% - 1px)`;
    before.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`;
  };
  slider.addEventListener("input", split);
  // a drag moves the line, not the node
  for (const kind of ["pointerdown", "pointermove", "mousedown", "mousemove"]) {
    slider.addEventListener(kind, (event) => event.stopPropagation());
  }
  split();
  box.append(after, before, line, slider);
  const show = (first, second) => Object.assign(before, { src: first }) && Object.assign(after, { src: second });
  return { box, show };
}

function address(picture) {
  return api.apiURL(`/view?${new URLSearchParams(picture)}`);
}

/** Puts an empty comparison on a node and returns what fills it from the node's output. */
function addComparison(node) {
  const { box, show } = comparison();
  let height = 0; // nothing is there before the first run
  const widget = node.addDOMWidget("before_after", "ZIMAGE_BEFORE_AFTER", box, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => height,
  });
  widget.serialize = false; // it has no value that a workflow would keep
  return (output) => {
    const [before, after] = [output?.before?.[0], output?.after?.[0]];
    if (!before || !after) return;
    show(address(before), address(after));
    box.style.visibility = "visible";
    if (height) return;
    height = HEIGHT;
    box.style.minHeight = `${HEIGHT}px`;
    const [width, least] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], least)]);
    app.graph.setDirtyCanvas(true, true);
  };
}

/** Takes the blurred picture of the run away, which the page leaves under the finished one. */
function clearPreview(path, node) {
  const page = document.querySelector("#vue-app")?.__vue_app__;
  page?.config.globalProperties.$pinia?._s.get("nodeOutput")?.revokePreviewsByExecutionId?.(path);
  node.imgs = undefined;
  const preview = node.widgets.findIndex((widget) => widget.name === PREVIEW);
  if (preview < 0) return;
  node.widgets[preview].onRemove?.();
  node.widgets.splice(preview, 1);
}

app.registerExtension({
  name: "ComfyUI-ZImage.Edit",
  setup() {
    api.addEventListener("executed", ({ detail }) => {
      const path = detail.display_node ?? detail.node;
      const node = nodeAt(path);
      if (node?.comfyClass === NODE) clearPreview(path, node);
    });
  },
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const fill = addComparison(node);
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.apply(this, arguments);
      fill(output);
    };
  },
});
