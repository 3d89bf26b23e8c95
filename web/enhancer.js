// The prompt enhancer's text: it grows on the node while it is written, stays there, and can be edited and locked.
// Where several were written, a row of buttons takes one of them.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { hideWhile } from "./hidden.js";
import { nodeAt } from "./node_at.js";
import { say } from "./translations.js";

const TYPE = "ZImagePromptEnhancer";
const LIVE_TEXT = "zimage.text";
const ROW = 30; // pixels

const widget = (node, name) => node?.widgets?.find((widget) => widget.name === name);

function show(node, text) {
  const box = widget(node, "text");
  if (!box || widget(node, "locked")?.value) return;
  box.value = text;
  node.setDirtyCanvas?.(true);
}

/** Marks the button of the text that is in the box: of equal texts number `at`, else the first. */
function mark(node, row, at) {
  const [buttons, text] = [[...row.querySelectorAll("button")], widget(node, "text").value];
  const chosen = buttons[at]?.title === text ? buttons[at] : buttons.find((button) => button.title === text);
  for (const button of buttons) {
    const taken = button === chosen;
    Object.assign(button.style, { fontWeight: taken ? "bold" : "", outline: taken ? "2px solid currentColor" : "" });
    button.ariaPressed = taken;
  }
}

/** Takes one of the texts that were written: it is locked, so that the next run uses it. */
function take(node, text) {
  widget(node, "text").value = text;
  const locked = widget(node, "locked");
  locked.value = true;
  locked.callback?.(true);
  node.setDirtyCanvas?.(true);
}

/** A row of buttons, one a text; returns what fills it. */
function addRow(node) {
  const row = document.createElement("div");
  Object.assign(row.style, { display: "flex", alignItems: "center", gap: "6px", padding: "0 8px", fontSize: "12px" });
  const added = node.addDOMWidget("choice", "ZIMAGE_CHOICE", row, { serialize: false, getMinHeight: () => ROW });
  added.serialize = false; // no value that a workflow would keep
  let texts = [];
  hideWhile(added, () => !texts.length);
  return (written) => {
    texts = written.length > 1 ? written : []; // an older Nodes 2.0 shows the row all the same
    const buttons = texts.map((text, at) => {
      const button = document.createElement("button");
      Object.assign(button, { textContent: at + 1, title: text, onclick: () => (take(node, text), mark(node, row, at)) });
      Object.assign(button.style, { flex: 1, padding: "2px", border: "1px solid currentColor", borderRadius: "4px" });
      return button;
    });
    row.replaceChildren(...(buttons.length ? [say("variants")] : []), ...buttons);
    mark(node, row);
    node.setDirtyCanvas?.(true, true);
  };
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
    const fill = addRow(node);
    const { onExecuted } = node;
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.enhanced) show(this, output.enhanced.join(""));
      if (output?.variants) fill(output.variants);
    };
  },
});
