/** The square of the picture that came out. */

import { useEffect, useRef } from "preact/hooks";

import { html } from "../html.js";
import { canvas, output, show } from "../output.js";
import { Store, useStore } from "../store.js";
import { faults, news } from "../words.js";
import { CompareModes, Divider, over } from "./compare.js";

const ANNOUNCE_MS = 5000;

/**
 * What a screen reader hears of live pictures: not each of them. Others are announced where the page says how they went.
 * @type {Store<{words: string, at: number}>}
 */
const announced = new Store({ words: "", at: 0 });

output.subscribe(({ result }, before) => {
  if (!result?.live || result === before.result || result.at - announced.state.at < ANNOUNCE_MS) return;
  announced.set({ words: news.picture(Math.round(result.roundTrip)), at: result.at });
});

canvas.setAttribute("role", "img");

export function OutSquare() {
  const host = useRef(/** @type {HTMLElement | null} */ (null));
  const empty = useStore(output, (state) => state.painted === 0);
  const progress = useStore(output, (state) => state.progress);
  const unsafe = useStore(output, (state) => !state.progress && Boolean(state.result?.unsafe[state.shown]));
  const words = useStore(announced, (state) => state.words);
  useEffect(() => void host.current?.prepend(canvas, over), []);
  useEffect(() => canvas.setAttribute("aria-label", empty ? "no picture yet" : "the picture that came out"), [empty]);
  return html`
    <div class="square" ref=${host}>
      ${empty && html`<p class="empty">Press <b>Generate</b> for one picture,<br />or <b>Live</b> and see every change at once.</p>`}
      ${unsafe && html`<p class="unsafe">${faults.unsafe}</p>`}
      <${Divider} />
      ${progress && html`<progress value=${progress.step} max=${progress.steps} aria-label="steps"></progress>`}
    </div>
    <div class="under"><${Pictures} /><${CompareModes} /></div>
    <p class="hidden" role="status">${words}</p>
  `;
}

/** Which of a result's pictures is seen. */
function Pictures() {
  // Not what live shows, which is one picture: that would be a rendering for each frame.
  const result = useStore(output, (state) => (state.result && state.result.pictures.length > 1 ? state.result : null));
  const shown = useStore(output, (state) => state.shown);
  if (!result) return null;
  return html`
    <div class="choice" role="radiogroup" aria-label="Pictures of this result">
      ${result.pictures.map((_, index) => html`
        <label key=${index} class="button">
          <input class="hidden" type="radio" name="shown" aria-label=${`Picture ${index + 1}`} checked=${index === shown}
            onChange=${() => show(result, index)} />${index + 1}
        </label>
      `)}
    </div>
  `;
}
