// The edit node shows what its picture shall show. A text that a run wrote there counts for those words alone that it
// was written for; a text of the user's own always counts.
import { app } from "../../scripts/app.js";

const TYPE = "ZImageEdit";
const WRITTEN = "zimage_target"; // the node's property: [target, instruction, source prompt] of what was written

const widget = (node, name) => node.widgets.find((widget) => widget.name === name);

app.registerExtension({
  name: "ComfyUI-ZImage.EditTarget",
  nodeCreated(node) {
    if (node.comfyClass !== TYPE) return;
    const box = widget(node, "target_prompt");
    let fresh; // what the last run wrote: not sent, or the same settings would be another run
    const own = () => box.value !== (node.properties[WRITTEN]?.[0] ?? "");
    box.serializeValue = () => {
      const [, ...words] = node.properties[WRITTEN] ?? [];
      const same = ["instruction", "source_prompt"].every((name, i) => widget(node, name).value === words[i]);
      return own() || (same && box.value !== fresh) ? box.value : "";
    };
    const { onExecuted } = node;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (!output?.target || (box.value && own())) return;
      node.properties[WRITTEN] = output.target;
      box.value = fresh = output.target[0];
      node.setDirtyCanvas?.(true);
    };
  },
});
