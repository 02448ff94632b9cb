/** What is asked for beside the picture: the values, their limits from the server's own document, what is wrong. */

import { Refusal, callJson } from "./server.js";
import { Store } from "./store.js";

const AGAIN_MS = 2000;

/**
 * @typedef {{prompt: string, negative_prompt: string, strength: number, num_inference_steps: number,
 *   guidance_scale: number, seed: number, num_images: number, enable_safety_checks: boolean}} Values
 * @typedef {Values & {seedLocked: boolean, side: number}} Settings
 *   `side`: the longest side of the picture that is sent, in pixels
 */

/** @type {Store<Settings>} */
export const settings = new Store({
  prompt: "masterpiece, colorful, photo of a beach in hawaii, sun",
  negative_prompt: "",
  strength: 0.8,
  num_inference_steps: 4,
  guidance_scale: 1,
  seed: dice(),
  num_images: 1,
  enable_safety_checks: true,
  seedLocked: false,
  side: 512,
});

/** The longest sides that can be chosen. */
export const SIDES = [256, 384, 512, 640, 768, 1024];

/**
 * The document's words and limits of each field, by name.
 * @typedef {{minimum?: number, maximum?: number, maxLength?: number, description?: string}} Limits
 * @type {Store<Record<string, Limits>>}
 */
export const limits = new Store({});

/** What the server has refused, by field, in its own words. @type {Store<Record<string, string>>} */
export const wrong = new Store({});

/** Note that the server has taken all fields. */
export function noneWrong() {
  wrong.set(Object.fromEntries(Object.keys(wrong.state).map((key) => [key, ""])));
}

settings.subscribe((now, before) => {
  const changed = Object.keys(now).filter((key) => now[/** @type {keyof Settings} */ (key)] !== before[/** @type {keyof Settings} */ (key)]);
  wrong.set(Object.fromEntries(changed.map((key) => [key, ""])));
});

/** A random seed that every client's language reads exactly. */
export function dice() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

/** The fields of an input, but for the picture. @returns {Values} */
export function values() {
  const { seedLocked: _, side: __, ...rest } = settings.state;
  return rest;
}

/** Take the limits from the server's document; asked again until the server can be reached. */
export async function readLimits() {
  for (;;) {
    try {
      const document = await callJson("openapi.json");
      return limits.set(document.components.schemas.LcmSd15I2iInput.properties);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }
}

/** Whether a number is one that the server takes for this field. @param {string} name @param {number} value */
export function isWithin(name, value) {
  const { minimum = -Infinity, maximum = Infinity } = limits.state[name] ?? {};
  return value >= minimum && value <= maximum;
}
