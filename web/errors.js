// What this extension says when a run fails, in a node of its own or of others, is shown in full.
//
// A newer page has one sentence for every failure, "Node threw an error during execution"; ours takes its place
// until the next run. An older page says it in a dialog; a toast keeps it when that is closed.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { translations } from "./translations.js";

const NODES = "ZImage"; // how the names of its nodes begin
const FOLDER = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-2));

/** Whether it is this extension that failed; in a sampler of others the last place that ran tells. */
const ours = ({ node_type, traceback }) =>
  node_type?.startsWith(NODES) || traceback?.at(-1)?.split(/[\\/]/).includes(FOLDER);

let undo;

/** Puts a sentence in place of the page's own; false where the page has none. */
function replace(sentence) {
  const i18n = translations();
  const locale = i18n?.locale.value;
  const own = i18n?.getLocaleMessage(locale).errorCatalog?.runtimeErrors?.execution_failed;
  if (!own?.toastMessage) return false;
  const { message, toastMessage } = own;
  const set = (texts) =>
    i18n.mergeLocaleMessage(locale, { errorCatalog: { runtimeErrors: { execution_failed: texts } } });
  undo = () => set({ message, toastMessage });
  set({ message: () => sentence, toastMessage: () => sentence }); // as functions: braces in it mean nothing
  return true;
}

function toast(node_type, sentence) {
  const title = LiteGraph.registered_node_types[node_type]?.title ?? node_type;
  const shown = { severity: "error", summary: title, detail: sentence };
  undo = () => app.extensionManager.toast.remove(shown);
  app.extensionManager.toast.add(shown);
}

app.registerExtension({
  name: "ComfyUI-ZImage.Errors",
  setup() {
    api.addEventListener("execution_start", () => {
      undo?.();
      undo = null;
    });
    api.addEventListener("execution_error", ({ detail }) => {
      if (!ours(detail)) return;
      const sentence = detail.exception_message.trim();
      if (!replace(sentence)) toast(detail.node_type, sentence);
    });
  },
});
