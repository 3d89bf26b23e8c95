// Widgets that are hidden while something is so.

const NO_ROOM = () => [0, -4]; // an older page keeps room for what is hidden, and 4 pixels between widgets

/** Gives a widget a property that is computed each time. */
export function compute(widget, name, get) {
  Object.defineProperty(widget, name, { configurable: true, enumerable: true, get, set() {} });
}

/** Hides a widget while hide() says so, without leaving its room empty. */
export function hideWhile(widget, hide) {
  const { computeSize } = widget;
  compute(widget, "hidden", hide); // for of what is only advanced a newer page keeps the room
  compute(widget, "computeSize", () => (hide() ? NO_ROOM : computeSize));
}
