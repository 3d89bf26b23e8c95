// On a canvas, too, advanced inputs are folded away; a button at the end of the node shows them.
//
// Nodes 2.0 has a button of its own. Nothing of this is saved: a graph opens folded.
import { app } from "../../scripts/app.js";
import { say } from "./translations.js";

const ALWAYS = "Comfy.Node.AlwaysShowAdvancedWidgets"; // a setting of newer pages

const NO_ROOM = () => [0, -4]; // an older page keeps room for what is hidden, and 4 pixels between widgets

const linked = (node, widget) =>
  node.inputs?.some((input) => input.widget?.name === widget.name && input.link != null);

/** Show or fold, and make the node as much higher or lower. */
function toggle(node) {
  const before = node.computeSize()[1];
  node.showAdvanced = !node.showAdvanced;
  node.setSize([node.size[0], node.size[1] + node.computeSize()[1] - before]);
  node.setDirtyCanvas(true, true);
}

/** Gives a widget a property that is computed each time. */
function compute(widget, name, get) {
  Object.defineProperty(widget, name, { configurable: true, enumerable: true, get, set() {} });
}

/** Hides a widget while hide() says so, without leaving its room empty. */
function hideWhile(widget, hide) {
  const { computeSize } = widget;
  compute(widget, "hidden", hide); // for of what is only advanced a newer page keeps the room
  compute(widget, "computeSize", () => (hide() ? NO_ROOM : computeSize));
}

function fold(node, widgets) {
  const onCanvas = () => !LiteGraph.vueNodesMode;
  const folds = (widget) => !app.ui.settings.getSettingValue(ALWAYS) && !linked(node, widget);
  for (const widget of widgets) hideWhile(widget, () => onCanvas() && !node.showAdvanced && folds(widget));
  const button = node.addWidget("button", "advanced", null, () => toggle(node), { serialize: false, canvasOnly: true });
  button.serialize = false; // no value that a workflow would keep
  compute(button, "label", () => say(node.showAdvanced ? "hide_advanced" : "show_advanced"));
  hideWhile(button, () => !onCanvas() || !widgets.some(folds));
}

app.registerExtension({
  name: "ComfyUI-ZImage.Advanced",
  nodeCreated(node) {
    const widgets = node.comfyClass?.startsWith("ZImage") ? node.widgets?.filter((w) => w.options?.advanced) : [];
    if (!widgets?.length) return;
    fold(node, widgets);
    if (!LiteGraph.vueNodesMode) node.setSize([node.size[0], node.computeSize()[1]]);
  },
});
