/** Compare: what went in, over what came out, up to a divider; or how far the two differ. */

import { html } from "../html.js";
import { output } from "../output.js";
import { onKey } from "../shortcuts.js";
import { Store, useStore } from "../store.js";

/**
 * `mode`: what lies over the output; `at`: the divider's place, in per cent; `held`: all of the input, while a key is down.
 * @type {Store<{mode: "" | "divider" | "difference", at: number, held: boolean}>}
 */
export const compare = new Store({ mode: "", at: 50, held: false });

/** What lies over the output's canvas. */
export const over = document.createElement("canvas");
over.hidden = true;

let begun = 0;
let done = 0;

/** Paint what is to be seen now; what is decoded too late is not painted. */
async function paint() {
  const { mode, held } = compare.state;
  const { result, shown } = output.state;
  const mine = ++begun;
  over.hidden = !(mode || held) || !result?.input;
  if (over.hidden || !result?.input) return;
  const both = await Promise.all([result.input, result.pictures[shown]].map((blob) => createImageBitmap(blob)));
  if (mine > done) {
    done = mine;
    draw(both[0], both[1], !held && mode === "difference");
  }
  for (const bitmap of both) bitmap.close();
}

/** @param {ImageBitmap} before @param {ImageBitmap} after @param {boolean} difference */
function draw(before, after, difference) {
  const { width, height } = after;
  const context = over.getContext("2d");
  if (!context) return;
  if (over.width !== width || over.height !== height) Object.assign(over, { width, height });
  if (difference) context.drawImage(after, 0, 0);
  context.globalCompositeOperation = difference ? "difference" : "source-over";
  context.drawImage(before, 0, 0, width, height);
  context.globalCompositeOperation = "lighter";
  // Added to itself twice: four times as bright.
  for (let doubled = 0; difference && doubled < 2; doubled++) context.drawImage(over, 0, 0);
  context.globalCompositeOperation = "source-over";
}

output.subscribe((now, before) => {
  if (now.result !== before.result || now.shown !== before.shown) void paint();
});
compare.subscribe((now, before) => {
  over.style.clipPath = now.mode === "divider" && !now.held ? `inset(0 ${100 - now.at}% 0 0)` : "";
  if (now.mode !== before.mode || now.held !== before.held) void paint();
});

export const toggleCompare = () => compare.set({ mode: compare.state.mode ? "" : "divider" });

onKey("x", "See what went in, while it is held", () => compare.set({ held: true }));
addEventListener("keyup", ({ key }) => void (key.toLowerCase() === "x" && compare.set({ held: false })));
addEventListener("blur", () => compare.set({ held: false }));

/** The divider: a range over the whole square. */
export function Divider() {
  const { mode, at } = useStore(compare, (state) => state);
  const possible = useStore(output, (state) => Boolean(state.result?.input));
  if (mode !== "divider" || !possible) return null;
  const move = (/** @type {any} */ { target }) => compare.set({ at: Number(target.value) });
  return html`
    <input class="divider" type="range" min="0" max="100" step="1" value=${at} onInput=${move}
      aria-label="Divider between in and out" aria-valuetext=${`${Math.round(at)} % in`} />
    <div class="line" aria-hidden="true" style=${{ left: `${at}%` }}><b>in</b><i></i><b>out</b></div>
  `;
}

/** Which comparison, once there is one. */
export function CompareModes() {
  const mode = useStore(compare, (state) => state.mode);
  if (!mode) return null;
  const button = (/** @type {"divider" | "difference"} */ name, /** @type {string} */ words) => html`
    <button type="button" aria-pressed=${mode === name} onClick=${() => compare.set({ mode: name })}>${words}</button>
  `;
  return html`
    <div class="choice" role="group" aria-label="Compare by">
      ${button("divider", "Divider")} ${button("difference", "Difference ×4")}
    </div>
  `;
}
