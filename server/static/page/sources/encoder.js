/** JPEGs of a canvas: in a worker where the browser has them for canvases, else on the page's own thread. */

import { Refusal } from "../server.js";
import { faults } from "../words.js";

/**
 * @typedef {{blob: Blob, bytes: Uint8Array<ArrayBuffer>}} Encoded
 * @typedef {{crop: number[], width: number, height: number, quality: number}} How
 *   `crop`: what is taken of the canvas, as left, top, width, height; `width` and `height`: what it becomes
 */

// The model works in blocks of eight pixels; a side under 64 is refused.
const BLOCK = 8;
const MIN_SIDE = 64;

const URL_OF_WORKER = new URL("./worker.js", import.meta.url).href;

/** @type {Worker | null} */
let worker = "OffscreenCanvas" in window ? started() : null;

/** The one script URL of the page: its policy lets no other string be one. */
function started() {
  const policy = /** @type {any} */ (window).trustedTypes?.createPolicy("fourstep-worker", {
    createScriptURL: (/** @type {string} */ url) => {
      if (url !== URL_OF_WORKER) throw new TypeError(`${url} is no worker of this page`);
      return url;
    },
  });
  const made = new Worker(policy?.createScriptURL(URL_OF_WORKER) ?? URL_OF_WORKER);
  // Not loaded, or out of memory: the page goes on without it.
  made.onerror = () => {
    worker = null;
    lost();
  };
  return made;
}

let lost = () => {};

/**
 * What is taken of a picture so that the server need not stretch it: sides in whole blocks, the longest at most `side`.
 * @param {number} width
 * @param {number} height
 * @param {number} side
 */
export function fitted(width, height, side) {
  const share = Math.min(1, Math.max(side / Math.max(width, height), MIN_SIDE / Math.min(width, height)));
  const [across, down] = [width, height].map((each) => Math.max(BLOCK, Math.round((each * share) / BLOCK) * BLOCK));
  const scale = Math.min(width / across, height / down);
  const [taken, high] = [across * scale, down * scale];
  return { crop: [(width - taken) / 2, (height - high) / 2, taken, high], width: across, height: down };
}

/** @type {Promise<unknown>} */
let turn = Promise.resolve();

/**
 * The canvas as JPEG, one at a time: as it is when its turn comes.
 * @param {HTMLCanvasElement} canvas
 * @param {{side: number, quality: number}} how
 * @returns {Promise<Encoded>}
 */
export function encode(canvas, { side, quality }) {
  const run = () => {
    const how = { ...fitted(canvas.width, canvas.height, side), quality };
    return worker ? inWorker(worker, canvas, how) : onPage(canvas, how);
  };
  const mine = turn.then(run, run);
  turn = mine;
  return mine;
}

/** @param {Worker} by @param {HTMLCanvasElement} canvas @param {How} how @returns {Promise<Encoded>} */
async function inWorker(by, canvas, how) {
  const bitmap = await createImageBitmap(canvas);
  const made = await new Promise((resolve) => {
    lost = () => resolve(null);
    by.onmessage = ({ data }) => resolve(data);
    if (worker) by.postMessage({ bitmap, ...how }, [bitmap]);
    else resolve(null);
  });
  return made ?? onPage(canvas, how);
}

/** @param {HTMLCanvasElement} canvas @param {How} how @returns {Promise<Encoded>} */
async function onPage(canvas, { crop, width, height, quality }) {
  const small = Object.assign(document.createElement("canvas"), { width, height });
  const to = /** @type {CanvasRenderingContext2D} */ (small.getContext("2d"));
  to.imageSmoothingQuality = "high";
  to.drawImage(canvas, crop[0], crop[1], crop[2], crop[3], 0, 0, width, height);
  const blob = await jpegOf(small, quality);
  return { blob, bytes: new Uint8Array(await blob.arrayBuffer()) };
}

/** The whole canvas as JPEG, made on the page's own thread. @param {HTMLCanvasElement} canvas @param {number} quality @returns {Promise<Blob>} */
export function jpegOf(canvas, quality) {
  return new Promise((resolve, reject) => {
    canvas.toBlob((made) => (made ? resolve(made) : reject(new Refusal(faults.noMemory))), "image/jpeg", quality);
  });
}

/** @param {Blob} blob @returns {Promise<string>} */
export function uriOf(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
