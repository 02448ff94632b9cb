/** The picture that came out: one canvas that every way of asking paints, and what is known of it. */

import { Store } from "./store.js";

/**
 * @typedef {import("./settings.js").Values} Values
 * @typedef {{pictures: Blob[], width: number, height: number, seed: number, timings: Record<string, number>,
 *   unsafe: boolean[], values: Values, side: number, input: Blob | null, roundTrip: number, at: number, live: boolean}} Result
 *   `input`: the picture that was sent, null where a reload has lost it; `roundTrip`: milliseconds from sending to the answer; `at`: milliseconds since 1970
 */

export const JPEG = "image/jpeg";

export const canvas = document.createElement("canvas");
canvas.width = canvas.height = 512;

/**
 * `result`: the newest; `shown`: which of its pictures; `progress`: of a preview that is on the canvas, else null;
 * `painted`: how often the canvas has been painted.
 * @type {Store<{result: Result | null, shown: number, progress: {step: number, steps: number} | null, painted: number}>}
 */
export const output = new Store({ result: null, shown: 0, progress: null, painted: 0 });

/**
 * Show a result, once its first picture is decoded; a newer one that is decoded sooner is not painted over.
 * @param {Result} result
 */
export async function show(result, shown = 0) {
  if (await paint(result.pictures[shown])) output.set({ result, shown, progress: null });
}

/**
 * Show how far a picture is.
 * @param {Blob} picture
 * @param {{step: number, steps: number}} progress
 */
export async function preview(picture, progress) {
  if (await paint(picture)) output.set({ progress });
}

let begun = 0;
let done = 0;

/** @param {Blob} picture @returns {Promise<boolean>} whether it was still the newest when it was decoded */
async function paint(picture) {
  const mine = ++begun;
  const bitmap = await createImageBitmap(picture);
  if (mine < done) return false;
  done = mine;
  const { width, height } = bitmap;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  canvas.getContext("2d")?.drawImage(bitmap, 0, 0);
  bitmap.close();
  output.set({ painted: output.state.painted + 1 });
  return true;
}

/** @param {string} uri a data URI in base64 */
export function blobOf(uri) {
  const comma = uri.indexOf(",");
  const bytes = Uint8Array.from(atob(uri.slice(comma + 1)), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: uri.slice(5, uri.indexOf(";")) });
}

/**
 * The result in an answer of the server.
 * @param {any} told
 * @param {{values: Values, side: number, input: Blob | null, roundTrip: number, live: boolean}} asked
 * @param {Blob[]} [pictures] where they are files; else they are in the answer, as data URIs
 * @returns {Result}
 */
export function resultOf(told, asked, pictures) {
  return {
    ...asked,
    pictures: pictures ?? told.images.map((/** @type {{url: string}} */ { url }) => blobOf(url)),
    width: told.images[0].width,
    height: told.images[0].height,
    seed: told.seed,
    timings: told.timings,
    unsafe: told.nsfw_content_detected,
    at: Date.now(),
  };
}
