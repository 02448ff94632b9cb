/** Keys: one table of what each does; none acts while somebody types, or under an open dialog. */

/** @typedef {{key: string, words: string, act: () => void, shift?: boolean, control?: boolean}} Shortcut */

/** @type {Shortcut[]} */
export const shortcuts = [];

/**
 * @param {string} key as `KeyboardEvent.key` has it
 * @param {string} words what it does, for the list
 * @param {() => void} act
 * @param {{shift?: boolean, control?: boolean}} [held]
 */
export function onKey(key, words, act, held = {}) {
  shortcuts.push({ key, words, act, ...held });
}

/** @param {EventTarget | null} target */
const isTyping = (target) =>
  target instanceof HTMLElement &&
  (target.isContentEditable || target.matches("textarea, select, input:not([type=range], [type=checkbox], [type=radio], [type=color])"));

/**
 * Whether Enter is for what has the focus. A dialog's button keeps it for a moment after the dialog is closed.
 * @param {EventTarget | null} target
 */
const hasItsOwn = (target) =>
  target instanceof Element && target.matches("button, a, summary, input, select") && target.checkVisibility();

addEventListener("keydown", (event) => {
  if (event.altKey || event.defaultPrevented || document.querySelector("dialog:modal")) return;
  const control = event.ctrlKey || event.metaKey;
  const found = shortcuts.find(
    (each) =>
      each.key.toLowerCase() === event.key.toLowerCase() &&
      Boolean(each.control) === control &&
      (each.shift === undefined || each.shift === event.shiftKey),
  );
  if (!found || (isTyping(event.target) && event.key !== "Escape")) return;
  if (event.key === "Enter" && hasItsOwn(event.target)) return;
  event.preventDefault();
  found.act();
});
