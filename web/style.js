// The words of a style are shown on the style node as soon as it is chosen.
import { app } from "../../scripts/app.js";

const TYPE = "ZImageStyle";
const CHINESE = /[\u3400-\u9fff]/;

let styles = {}; // name -> its words by language

const wordsOf = (definition) => definition?.input?.required?.style?.[1]?.styles ?? styles;

/** The language of the prompt on the node; where there is none, or it comes from another node, that of the page. */
function language(text) {
  const sample = text?.trim() || app.ui.settings.getSettingValue("Comfy.Locale");
  return CHINESE.test(sample) || sample?.startsWith("zh") ? "zh" : "en";
}

/** On a canvas: the field to search the open list by label or id, which the page gives only to lists of ids. */
function addSearch() {
  const menu = [...document.querySelectorAll(".litecontextmenu")].at(-1);
  if (!menu || menu.querySelector("input")) return;
  const field = document.createElement("input");
  field.className = "comfy-context-menu-filter";
  field.placeholder = "Filter list";
  const entries = [...menu.querySelectorAll(".litemenu-entry")];
  const fits = (entry) =>
    `${entry.textContent}\n${entry.value}`.toLowerCase().includes(field.value.trim().toLowerCase());
  field.addEventListener("input", () => {
    for (const entry of entries) entry.style.display = fits(entry) ? "block" : "none";
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") entries.find(fits)?.click();
    event.stopPropagation(); // letters are no shortcuts here
  });
  menu.prepend(field);
  requestAnimationFrame(() => field.focus());
}

app.registerExtension({
  name: "ComfyUI-ZImage.Style",
  beforeRegisterNodeDef(_, definition) {
    if (definition.name === TYPE) styles = wordsOf(definition);
  },
  refreshComboInNodes(definitions) {
    styles = wordsOf(definitions[TYPE]);
  },
  nodeCreated(node) {
    if (node.comfyClass !== TYPE) return;
    const [text, style, box] = ["text", "style", "styled"].map((name) =>
      node.widgets.find((widget) => widget.name === name),
    );
    const show = () => {
      box.value = styles[style.value]?.[language(text.value)] ?? "";
    };
    const { callback } = style;
    style.callback = function () {
      callback?.apply(this, arguments);
      show();
    };
    const { onClick } = style;
    style.onClick = function () {
      onClick?.apply(this, arguments);
      addSearch();
    };
    show();
  },
});
