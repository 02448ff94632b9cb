/** The picture that goes in: one canvas that every source paints, and its copy as JPEG for the server. */

import { at } from "../server.js";
import { Store } from "../store.js";
import { encode } from "./encoder.js";
import { Unreadable, read } from "./picture.js";
import { Sheet, context } from "./sheet.js";

export const canvas = document.createElement("canvas");
canvas.width = canvas.height = 512;

/** @typedef {"draw" | "camera" | "screen" | "picture"} Kind */

/**
 * `version` counts the changes of the picture; `said`: why a source gives no picture, in words; `trust`: whether the
 * page on https would help.
 * @type {Store<{kind: Kind, version: number, said: string, trust: boolean}>}
 */
export const source = new Store({ kind: "picture", version: 0, said: "", trust: false });

// Each kind keeps its picture and its drawing, so that nothing is lost by looking at another.
/** @type {Record<Kind, Sheet>} */
export const sheets = { draw: new Sheet(), camera: new Sheet(), screen: new Sheet(), picture: new Sheet() };

/** What is on the canvas. */
export const sheet = () => sheets[source.state.kind];

/** Note that the canvas has another picture now. */
export function touched() {
  source.set({ version: source.state.version + 1 });
}

/** Paint the canvas anew, after a change of its sheet. */
export function repaint() {
  sheet().paint(canvas);
  touched();
}

let choices = 0;

/** Note that somebody chooses a source; returns whether it is still the newest choice, for when it is ready. */
export function choice() {
  const mine = ++choices;
  return () => mine === choices;
}

/** Show the sheet of a source. @param {Kind} kind */
export function turnTo(kind) {
  source.set({ kind, said: "", trust: false });
  repaint();
}

/** Draw on white. */
export function useWhite() {
  choice();
  turnTo("draw");
}

/** Go back to the last picture. */
export function useLastPicture() {
  choice();
  turnTo("picture");
}

// The picture that is on its way: what is asked for meanwhile is asked of that one.
/** @type {Promise<void>} */
let arriving = Promise.resolve();

/** Resolves once the picture that is on its way is on the canvas. */
export const arrived = () => arriving;

/**
 * The canvas as JPEG, its longest side at most `side` pixels, its sides multiples of eight.
 * @param {{side: number, quality: number}} how
 * @returns {Promise<import("./encoder.js").Encoded>}
 */
export async function encoded(how) {
  await arrived();
  sheet().behind?.();
  return encode(canvas, how);
}

/**
 * Put a picture on the canvas, at its own shape, its longest side at most 1024 pixels. A file that is none is said to be,
 * and what is on the canvas stays.
 * @param {Blob} file
 */
export function usePicture(file) {
  return (arriving = opened(file));
}

/** Begin with the server's example picture; or with white, where it can't be had. */
export function useExample() {
  return (arriving = example());
}

/** @param {Blob} file */
async function opened(file) {
  const isNewest = choice();
  try {
    const bitmap = await read(file);
    if (isNewest()) take(bitmap);
    bitmap.close();
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error;
    if (isNewest()) source.set({ said: error.message, trust: false });
  }
}

/** @param {ImageBitmap} bitmap */
function take(bitmap) {
  const { width, height } = bitmap;
  const { base } = sheets.picture;
  Object.assign(base, { width, height });
  const to = context(base);
  // What shows through a picture is white, as on the server.
  to.fillStyle = "#fff";
  to.fillRect(0, 0, width, height);
  to.drawImage(bitmap, 0, 0);
  sheets.picture.forget();
  turnTo("picture");
}

async function example() {
  const isNewest = choice();
  const file = await fetch(at("static/beach.jpg")).then((answer) => answer.blob(), () => null);
  if (!isNewest()) return;
  if (file) await opened(file);
  else turnTo("draw");
}
