// Options are shown by their labels in the page's language; graphs keep the ids.
import { app } from "../../scripts/app.js";
import { translations } from "./translations.js";

/** The labels of one input's options, by id; empty where the page has no text for them. */
function labels(type, input) {
  const i18n = translations();
  return i18n?.getLocaleMessage(i18n.locale.value).nodeDefs?.[type]?.inputs?.[input]?.options ?? {};
}

app.registerExtension({
  name: "ComfyUI-ZImage.OptionLabels",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("ZImage")) return;
    for (const widget of node.widgets ?? []) {
      if (widget.type !== "combo" || !widget.options || widget.options.getOptionLabel) continue;
      widget.options.getOptionLabel = (id) => {
        const label = labels(node.comfyClass, widget.name)[id];
        // a newer page may keep a translation as a parsed message
        return typeof label === "string" ? label : (label?.loc?.source ?? id);
      };
    }
  },
});
