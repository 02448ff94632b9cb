/** The last results with their settings, in this browser only: IndexedDB, or memory where that is refused or full. */

import { clear, createStore, delMany, entries, set } from "idb-keyval";

import { output, show } from "../output.js";
import { at } from "../server.js";
import { SIDES, settings } from "../settings.js";
import { jpegOf } from "../sources/encoder.js";
import { usePicture } from "../sources/source.js";
import { Store } from "../store.js";
import { live, stopLive } from "../ways/live.js";
import { faults, news } from "../words.js";
import { say } from "../work.js";

/**
 * @typedef {import("../output.js").Result} Result
 * @typedef {{id: number, result: Result, thumb: Blob, url: string}} Kept `url`: of the small picture
 */

export const MOST = 50;
const THUMB_PX = 128;

// Another server under another path of this host has its own.
const database = createStore(`fourstep ${at("").pathname}`, "results");

/** @type {Store<{items: Kept[], said: string}>} the newest first; `said`: that the browser keeps nothing */
export const strip = new Store({ items: [], said: "" });

/** What is in the strip, or on its way there. @type {WeakSet<Result>} */
const known = new WeakSet();
let newest = 0;

// Other tabs of this page: what one forgets is gone from all.
const tabs = new BroadcastChannel(`fourstep ${at("").pathname}`);
tabs.onmessage = forgetHere;

// Live makes too many to keep all: the last one stays.
output.subscribe(({ result }, before) => {
  if (result && result !== before.result && !result.live) void keep(result);
});
live.subscribe(({ on }, before) => {
  const { result } = output.state;
  if (before.on && !on && result?.live) void keep(result);
});

/** Take up what earlier visits have kept. */
export async function readKept() {
  const found = await tried(() => entries(database));
  const items = (found ?? []).map(([id, { result, thumb }]) => item(Number(id), result, thumb));
  change([...strip.state.items, ...items.sort((one, other) => other.id - one.id)]);
}

/** Put a result into the strip, unless it is there. @param {Result} result */
export async function keep(result) {
  if (known.has(result)) return;
  known.add(result);
  const thumb = await thumbnail(result);
  const id = Math.max(result.at, 1 + Math.max(newest, strip.state.items[0]?.id ?? 0));
  newest = id;
  // Stored first: who sees it may leave the page at once.
  await tried(() => set(id, { result, thumb }, database));
  change([item(id, result, thumb), ...strip.state.items]);
}

export async function forgetAll() {
  forgetHere();
  await tried(() => clear(database));
  tabs.postMessage("forgotten");
}

function forgetHere() {
  for (const { url } of strip.state.items) URL.revokeObjectURL(url);
  strip.set({ items: [] });
}

/** Show a result again, with everything that it was made from. @param {Result} result */
export async function restore(result) {
  stopLive();
  const { values, seed, input } = result;
  // Live may have sent less than was chosen.
  const side = SIDES.find((each) => each >= result.side) ?? result.side;
  settings.set({ ...values, seed, side, seedLocked: true });
  if (input) await usePicture(input);
  await show(result);
  say((input ? news.restored : faults.restoredAlone)(seed));
}

/** @param {number} id @param {Result} result @param {Blob} thumb @returns {Kept} */
function item(id, result, thumb) {
  known.add(result);
  return { id, result, thumb, url: URL.createObjectURL(thumb) };
}

/** @param {Kept[]} items */
function change(items) {
  const dropped = items.slice(MOST);
  for (const { url } of dropped) URL.revokeObjectURL(url);
  strip.set({ items: items.slice(0, MOST) });
  if (dropped.length) void tried(() => delMany(dropped.map(({ id }) => id), database));
}

/** @param {Result} result */
async function thumbnail({ pictures, width, height }) {
  const share = THUMB_PX / Math.max(width, height);
  const [resizeWidth, resizeHeight] = [width, height].map((each) => Math.max(1, Math.round(each * share)));
  const bitmap = await createImageBitmap(pictures[0], { resizeWidth, resizeHeight, resizeQuality: "high" });
  const small = Object.assign(document.createElement("canvas"), { width: resizeWidth, height: resizeHeight });
  small.getContext("2d")?.drawImage(bitmap, 0, 0);
  bitmap.close();
  return jpegOf(small, 0.85);
}

/**
 * What `act` gives; where the browser keeps nothing, that is said and the strip lasts for this visit.
 * @template T
 * @param {() => Promise<T>} act
 */
async function tried(act) {
  try {
    return await act();
  } catch {
    strip.set({ said: faults.nothingKept });
    return undefined;
  }
}
