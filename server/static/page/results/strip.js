/** The strip of results below everything. */

import { useEffect, useState } from "preact/hooks";

import { html } from "../html.js";
import { Icon } from "../icons.js";
import { output } from "../output.js";
import { useStore } from "../store.js";
import { news } from "../words.js";
import { MOST, forgetAll, restore, strip } from "./kept.js";

const SURE_MS = 4000;

export function Strip() {
  const { items, said } = useStore(strip, (state) => state);
  // Not what live shows: that would be a rendering for each frame.
  const shown = useStore(output, ({ result }) => (result?.live && items.every((each) => each.result !== result) ? null : result));
  return html`
    <section class="strip" aria-labelledby="strip-title">
      <header>
        <h2 id="strip-title">Results</h2>
        <p role="status">${said || news.kept(MOST)}</p>
        ${items.length > 0 && html`<${Forget} count=${items.length} />`}
      </header>
      <ul>
        ${items.map(({ id, result, url }) => html`
          <li key=${id}>
            <button type="button" aria-current=${result === shown} title=${described(result)} onClick=${() => again(result)}>
              <img src=${url} alt=${`Result with seed ${result.seed}`} />
              ${result.pictures.length > 1 && html`<span aria-hidden="true">${result.pictures.length}</span>`}
            </button>
          </li>
        `)}
      </ul>
    </section>
  `;
}

/** Restore a result, and bring its picture into sight. @param {import("../output.js").Result} result */
async function again(result) {
  await restore(result);
  document.querySelector(".out")?.scrollIntoView({ block: "nearest" });
}

/** A first press asks, a second within some seconds does it. @param {{count: number}} props */
function Forget({ count }) {
  const [sure, setSure] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => setSure(false), SURE_MS);
    return () => clearTimeout(timer);
  }, [sure]);
  return html`
    <button type="button" class="plain" onClick=${() => (sure ? void forgetAll() : setSure(true))}>
      <${Icon} name="trash" /> ${sure ? `Forget all ${count}: sure?` : "Forget all"}</button>
  `;
}

/** @param {import("../output.js").Result} result */
function described({ values, seed, pictures, at }) {
  return [
    values.prompt,
    `strength ${values.strength}, ${values.num_inference_steps} steps, guidance ${values.guidance_scale}, seed ${seed}`,
    `${pictures.length > 1 ? `${pictures.length} pictures, ` : ""}${new Date(at).toLocaleString()}`,
  ].join("\n");
}
