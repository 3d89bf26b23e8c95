// The prompt enhancer's lock: a change of prompt, seed or template by hand opens it, and while it is closed the
// prompt box shows that it is not read.
import { app } from "../../scripts/app.js";
import { say } from "./translations.js";

const TYPE = "ZImagePromptEnhancer";
const OPENERS = ["prompt", "seed", "template", "variants"];
const DIM = 0.45;

/** Dims the prompt box. Nodes 2.0 makes a box of its own, which a rule of style finds. */
function dimmer(node, prompt) {
  const style = document.head.appendChild(document.createElement("style"));
  const names = [prompt.name, prompt.label].filter(Boolean).map((name) => `[aria-label=${JSON.stringify(name)}]`);
  const { onRemoved } = node;
  node.onRemoved = function () {
    onRemoved?.apply(this, arguments);
    style.remove();
  };
  return (dim) => {
    style.textContent = dim ? `[data-node-id="${node.id}"] textarea:is(${names}) { opacity: ${DIM} }` : "";
    if (prompt.element) prompt.element.style.opacity = dim ? DIM : "";
  };
}

/** Calls `changed` when a widget gets another value by hand: not by loading, undo, or control after generate. */
function watch(node, widgets, changed) {
  let byPage = 0;
  const known = new Map();
  const remember = () => widgets.forEach((widget) => known.set(widget, widget.value));
  /** Makes a method of an object one in which changes are the page's. */
  const quiet = (owner, name) => {
    const method = owner[name];
    if (!method) return;
    owner[name] = function () {
      byPage++;
      try {
        return method.apply(this, arguments);
      } finally {
        byPage--;
        remember();
      }
    };
  };
  quiet(node, "configure");
  for (const widget of widgets) {
    for (const control of widget.linkedWidgets ?? []) {
      for (const name of ["beforeQueued", "afterQueued"]) quiet(control, name);
    }
    const { callback } = widget;
    widget.callback = function () {
      const result = callback?.apply(this, arguments);
      const other = known.get(widget) !== widget.value;
      known.set(widget, widget.value);
      if (other && !byPage) changed();
      return result;
    };
  }
  remember();
}

app.registerExtension({
  name: "ComfyUI-ZImage.Lock",
  nodeCreated(node) {
    if (node.comfyClass !== TYPE) return;
    const widget = (name) => node.widgets.find((widget) => widget.name === name);
    const [prompt, locked] = [widget("prompt"), widget("locked")];
    const { label } = prompt;
    const dim = dimmer(node, prompt);
    const mark = () => {
      prompt.label = locked.value ? `${label ?? prompt.name} (${say("not_read")})` : label;
      dim(locked.value);
      node.setDirtyCanvas?.(true, true);
    };
    watch(node, OPENERS.map(widget), () => {
      if (!locked.value) return;
      locked.value = false;
      locked.callback?.(false);
    });
    const { callback } = locked;
    locked.callback = function () {
      const result = callback?.apply(this, arguments);
      mark();
      return result;
    };
    const { onConfigure } = node;
    node.onConfigure = function () {
      onConfigure?.apply(this, arguments);
      mark();
    };
  },
});
