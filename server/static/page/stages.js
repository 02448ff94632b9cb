/** The bar of stages under the picture that came out: what took how long, in proportion. */

import { html } from "./html.js";
import { output } from "./output.js";
import { Store, useStore } from "./store.js";

// Of live more often than this nobody reads the times, and each time costs the page a rendering.
const TELL_MS = 250;

/** @type {[string, string[], string][]} name, the keys of `timings`, class */
const STAGES = [
  ["queue", ["queue", "wait"], "queue"],
  ["text", ["text"], "text"],
  ["encode", ["decode_image", "noise", "encode"], "encode"],
  ["steps", ["steps"], "steps"],
  ["decode", ["decode"], "decode"],
  ["safety", ["safety"], "safety"],
  ["JPEG", ["encode_jpeg"], "jpeg"],
];

/**
 * The stages with their milliseconds; what the server does not account for of a round trip is the network.
 * @param {import("./output.js").Result} result
 */
export function stagesOf({ timings, roundTrip }) {
  const stages = STAGES.map(([name, keys, kind]) => ({
    name,
    kind,
    ms: keys.reduce((sum, key) => sum + (timings[key] ?? 0) * 1000, 0),
  }));
  const rest = roundTrip - ((timings.inference ?? 0) + (timings.queue ?? 0)) * 1000;
  return [...stages.filter(({ ms }) => ms > 0), { name: "network", kind: "network", ms: Math.max(0, rest) }];
}

/** The result whose times are shown. @type {Store<{result: import("./output.js").Result | null}>} */
const told = new Store({ result: null });
let due = 0;

output.subscribe(({ result }, before) => {
  if (result === before.result || due) return;
  if (!result?.live) return told.set({ result });
  due = setTimeout(() => {
    due = 0;
    told.set({ result: output.state.result });
  }, TELL_MS);
});

export function Stages() {
  const result = useStore(told, (state) => state.result);
  if (!result) return html`<div class="stages"></div>`;
  const stages = stagesOf(result);
  const all = stages.reduce((sum, { ms }) => sum + ms, 0);
  return html`
    <figure class="stages" aria-label="Time of each stage">
      <div class="proportion" aria-hidden="true">
        ${stages.map(({ name, kind, ms }) => html`<i key=${name} class=${kind} style=${{ flexGrow: ms / all }}></i>`)}
      </div>
      <figcaption>
        ${stages.map(({ name, kind, ms }) => html`<span key=${name}><i class=${kind}></i>${name} ${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms</span>`)}
      </figcaption>
    </figure>
  `;
}
