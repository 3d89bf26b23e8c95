// On a canvas, too, advanced inputs are folded away; a button at the end of the node shows them.
//
// Nodes 2.0 has a button of its own. Nothing of this is saved: a graph opens folded.
import { app } from "../../scripts/app.js";
import { compute, hideWhile } from "./hidden.js";
import { say } from "./translations.js";

const ALWAYS = "Comfy.Node.AlwaysShowAdvancedWidgets"; // a setting of newer pages

/** Whether a link or the node of a subgraph uses an input: then it stays in sight. */
const used = (node, widget) =>
  widget.promoted || node.inputs?.some((input) => input.widget?.name === widget.name && input.link != null);

/** Show or fold, and make the node as much higher or lower. */
function toggle(node) {
  const before = node.computeSize()[1];
  node.showAdvanced = !node.showAdvanced;
  node.setSize([node.size[0], node.size[1] + node.computeSize()[1] - before]);
  node.setDirtyCanvas(true, true);
}

function fold(node, widgets) {
  const onCanvas = () => !LiteGraph.vueNodesMode;
  const folds = (widget) => !app.ui.settings.getSettingValue(ALWAYS) && !used(node, widget);
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
