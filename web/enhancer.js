// The prompt enhancer's text: it grows on the node while it is written, stays there, and can be edited and locked.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeAt } from "./node_at.js";

const TYPE = "ZImagePromptEnhancer";
const LIVE_TEXT = "zimage.text";

const widget = (node, name) => node?.widgets?.find((widget) => widget.name === name);

function show(node, text) {
  const box = widget(node, "text");
  if (!box || widget(node, "locked")?.value) return;
  box.value = text;
  node.setDirtyCanvas?.(true);
}

app.registerExtension({
  name: "ComfyUI-ZImage.Enhancer",
  setup() {
    api.addEventListener(LIVE_TEXT, ({ detail }) => show(nodeAt(detail.node), detail.text));
  },
  nodeCreated(node) {
    if (node.comfyClass !== TYPE) return;
    // Not sent unless it is used: a result must not make the next run of the same settings a new one.
    const box = widget(node, "text");
    box.serializeValue = () => (widget(node, "locked").value ? box.value : "");
    const { onExecuted } = node;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.enhanced) show(this, output.enhanced.join(""));
    };
  },
});
