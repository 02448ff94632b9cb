/** Settings in the page's fragment, never the picture: a link shows a colleague the same controls. */

import { SIDES, isWithin, settings } from "./settings.js";

/** @typedef {import("./settings.js").Settings} Settings */

const SHARED = /** @type {(keyof Settings)[]} */ ([
  "prompt",
  "negative_prompt",
  "strength",
  "num_inference_steps",
  "guidance_scale",
  "seed",
  "num_images",
  "enable_safety_checks",
  "side",
]);

/** The link to what is on screen. */
export function link() {
  const url = new URL(location.href);
  url.hash = new URLSearchParams(SHARED.map((key) => [key, String(settings.state[key])])).toString();
  return url.href;
}

/** Take what the fragment says; what makes no sense in it stays at its default. */
export function readFragment() {
  const given = new URLSearchParams(location.hash.slice(1));
  /** @type {Record<string, unknown>} */
  const taken = {};
  for (const key of SHARED) {
    const text = given.get(key);
    if (text === null) continue;
    const value = parsed(text, typeof settings.state[key]);
    const isGood = key === "side" ? SIDES.includes(Number(value)) : typeof value !== "number" || isWithin(key, value);
    if (value !== undefined && isGood) taken[key] = value;
  }
  if ("seed" in taken) taken.seedLocked = true;
  settings.set(taken);
}

/** @param {string} text @param {string} type */
function parsed(text, type) {
  if (type === "boolean") return text === "true" ? true : text === "false" ? false : undefined;
  if (type === "number") return text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : undefined;
  return text;
}
