/** The picture that goes in: one canvas that every source paints, and its copy as JPEG for the server. */

import { Store } from "../store.js";

export const canvas = document.createElement("canvas");
canvas.width = canvas.height = 512;

/** @typedef {"draw" | "camera" | "screen" | "picture"} Kind */

/**
 * `version` counts the changes of the picture; `said`: why a source gives no picture, in words.
 * @type {Store<{kind: Kind, version: number, said: string}>}
 */
export const source = new Store({ kind: "picture", version: 0, said: "" });

/** Note that the canvas has another picture now. */
export function touched() {
  source.set({ version: source.state.version + 1 });
}

/**
 * The canvas as JPEG, its longest side at most `side` pixels.
 * @param {{side: number, quality: number}} how
 * @returns {Promise<{blob: Blob, dataUri: string}>}
 */
export async function encoded({ side, quality }) {
  const share = Math.min(1, side / Math.max(canvas.width, canvas.height));
  const small = new OffscreenCanvas(Math.round(canvas.width * share), Math.round(canvas.height * share));
  small.getContext("2d")?.drawImage(canvas, 0, 0, small.width, small.height);
  const blob = await small.convertToBlob({ type: "image/jpeg", quality });
  return { blob, dataUri: await uriOf(blob) };
}

/** @param {Blob} blob @returns {Promise<string>} */
function uriOf(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/**
 * Put a picture on the canvas, at its own shape, its longest side at most 1024 pixels.
 * @param {Blob} file
 */
export async function usePicture(file) {
  const bitmap = await createImageBitmap(file);
  const share = Math.min(1, 1024 / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((each) => Math.max(1, Math.round(each * share)));
  Object.assign(canvas, { width, height });
  canvas.getContext("2d")?.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  source.set({ kind: "picture", said: "" });
  touched();
}
