// Texts that nodes make are shown in a box on them after each run; nobody types there, and it is not sent.
import { app } from "../../scripts/app.js";

const BOXES = { ZImageWildcards: "drawn", ZImageStyle: "styled" };

app.registerExtension({
  name: "ComfyUI-ZImage.Drawn",
  nodeCreated(node) {
    const name = BOXES[node.comfyClass];
    const box = node.widgets?.find((widget) => widget.name === name);
    if (!box) return;
    box.serializeValue = () => ""; // a shown text must not make the run a new one
    if (box.element) box.element.readOnly = true; // on a canvas
    box.options.read_only = true; // in Nodes 2.0
    const { onExecuted } = node;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.[name]) box.value = output[name].join("");
    };
  },
});
