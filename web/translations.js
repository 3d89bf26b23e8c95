// Puts this extension's translations back where the page has lost them.
//
// ComfyUI's page before 1.35 merges the translations of extensions first and then sets the chosen language over
// them. Newer pages keep them; then there is nothing to do here.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const OURS = "ZImage";
const PATIENCE = 3000; // milliseconds until the page has loaded its language

/** The page's vue-i18n, or nothing where it cannot be reached. */
export function translations() {
  const page = document.querySelector("#vue-app")?.__vue_app__;
  return page?._context?.provides?.[page.__VUE_I18N_SYMBOL__]?.global;
}

/** A text of this extension's own, by its key in locales/.../main.json. */
export function say(key) {
  return translations()?.t(`zimage.${key}`) ?? key;
}

/** Resolves once `locale` is what the page shows, or when patience ends. */
async function shown(i18n, locale) {
  const end = Date.now() + PATIENCE;
  while (i18n.locale.value !== locale && Date.now() < end) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return i18n.locale.value === locale;
}

app.registerExtension({
  name: "ComfyUI-ZImage.Translations",
  async init() {
    const i18n = translations();
    const locale = app.ui?.settings?.getSettingValue("Comfy.Locale");
    if (!i18n?.mergeLocaleMessage || !locale || !(await shown(i18n, locale))) return;
    const present = i18n.getLocaleMessage(locale).nodeDefs ?? {};
    if (Object.keys(present).some((id) => id.startsWith(OURS))) return;
    const all = await (await api.fetchApi("/i18n")).json();
    const { nodeDefs = {}, nodeCategories = {}, zimage = {} } = all[locale] ?? {};
    const ours = Object.entries(nodeDefs).filter(([id]) => id.startsWith(OURS));
    i18n.mergeLocaleMessage(locale, { nodeDefs: Object.fromEntries(ours), nodeCategories, zimage });
  },
});
