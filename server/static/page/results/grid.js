/** Grid: two settings against each other, the same picture and seed; one call after the other, painted as they come. */

import { Store } from "../store.js";
import { SIDES, limits, settings } from "../settings.js";
import { APP, callJson } from "../server.js";
import { canvas as source } from "../sources/source.js";
import { asked, patiently, report } from "../ways/generate.js";
import { stopLive } from "../ways/live.js";
import { faults, news } from "../words.js";
import { say, work } from "../work.js";
import { Sheet } from "./sheet.js";
import { blobOf } from "../output.js";

export const MOST = 5;

/** @typedef {"strength" | "num_inference_steps" | "guidance_scale" | "seed" | "side"} Name */
/** @typedef {{name: Name, values: number[]}} Axis */

/** What can be an axis; the values that are proposed for it. @type {Record<Name, {label: string, whole?: boolean, proposed: () => number[]}>} */
export const AXES = {
  strength: { label: "Strength", proposed: () => [0.2, 0.4, 0.6, 0.8, 1] },
  num_inference_steps: { label: "Steps", whole: true, proposed: () => [1, 2, 4, 8] },
  guidance_scale: { label: "Guidance", proposed: () => [1, 1.5, 2, 3] },
  seed: { label: "Seed", whole: true, proposed: () => [0, 1, 2, 3].map((each) => settings.state.seed + each) },
  side: { label: "Size", whole: true, proposed: () => SIDES.filter((each) => each <= 512) },
};

/** `done` of `all` pictures are made, `all` 0 before the first grid. @type {Store<{open: boolean, done: number, all: number}>} */
export const grid = new Store({ open: false, done: 0, all: 0 });

export const canvas = document.createElement("canvas");

/** @type {AbortController | null} */
let running = null;

export function cancelGrid() {
  running?.abort();
}

/**
 * The values that somebody has written for an axis. Raises `RangeError` with what is wrong with them, in words.
 * @param {Name} name
 * @param {string} text
 */
export function valuesIn(name, text) {
  const written = text.split(/[\s,;]+/).filter(Boolean);
  const { label, whole, proposed } = AXES[name];
  const { minimum = 0, maximum = Number.MAX_SAFE_INTEGER } =
    name === "side" ? { minimum: 64, maximum: Math.max(...SIDES) } : (limits.state[name] ?? {});
  if (written.length < 1 || written.length > MOST) throw new RangeError(faults.count(MOST, proposed().join(", ")));
  return written.map((each) => {
    const value = Number(each);
    if (Number.isNaN(value)) throw new RangeError(faults.noNumber(each, proposed()[0]));
    if (whole && !Number.isInteger(value)) throw new RangeError(faults.notWhole(each, label));
    if (value < minimum || value > maximum) throw new RangeError(faults.outside(value, label, minimum, maximum));
    return value;
  });
}

/**
 * Make one picture for each pair of values, until it is cancelled.
 * @param {Axis} across
 * @param {Axis | null} down
 */
export async function makeGrid(across, down) {
  if (work.state.busy === "live") stopLive();
  if (work.state.busy) return;
  const { signal } = (running = new AbortController());
  const rows = down ? down.values.map((value) => ({ [down.name]: value })) : [{}];
  const cells = rows.flatMap((row) => across.values.map((value) => ({ ...row, [across.name]: value, num_images: 1 })));
  work.set({ busy: "grid", said: news.waiting, wrong: false });
  grid.set({ done: 0, all: cells.length });
  try {
    const sheet = new Sheet(canvas, labelled(across), down && labelled(down), source.width / source.height, footing(across, down));
    // All at once, so that they are of one picture also where it moves.
    const inputs = await Promise.all(cells.map((cell) => asked(cell)));
    for (const [index, { input }] of inputs.entries()) {
      const told = await patiently(() => callJson(`run/${APP}`, { body: input, signal }), signal, true);
      await sheet.put(index, blobOf(told.images[0].url), told.nsfw_content_detected[0]);
      grid.set({ done: index + 1 });
      say(news.cell(index + 1, cells.length));
    }
    say(news.grid(cells.length));
  } catch (error) {
    report(error, signal);
  } finally {
    running = null;
    work.set({ busy: "" });
  }
}

/** @param {Axis} axis */
const labelled = ({ name, values }) => ({ title: AXES[name].label, values: values.map(String) });

/** The prompt, and the settings that are the same in all cells. @param {Axis} across @param {Axis | null} down */
function footing(across, down) {
  const names = /** @type {Name[]} */ (Object.keys(AXES));
  const fixed = names.filter((name) => name !== across.name && name !== down?.name);
  return [settings.state.prompt, fixed.map((name) => `${AXES[name].label.toLowerCase()} ${settings.state[name]}`).join(" · ")];
}
