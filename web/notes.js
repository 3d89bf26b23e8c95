// What a run had to say under a sampler goes when the next run has nothing to say.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { nodeAt } from "./node_at.js";

const NOTHING_TO_SAY = "zimage.nothing_to_say";
const TEXT = "$$node-text-preview"; // the page's own name for the text that it shows under a node

app.registerExtension({
  name: "ComfyUI-ZImage.Notes",
  setup() {
    api.addEventListener(NOTHING_TO_SAY, ({ detail }) => {
      const node = nodeAt(detail.node);
      const place = node?.widgets?.findIndex((widget) => widget.name === TEXT) ?? -1;
      if (place < 0) return;
      node.widgets[place].onRemove?.();
      node.widgets.splice(place, 1);
      node.setDirtyCanvas?.(true);
    });
  },
});
