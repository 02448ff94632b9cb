/** The square of the picture that came out. */

import { useEffect, useRef } from "preact/hooks";

import { html } from "../html.js";
import { canvas, output } from "../output.js";
import { useStore } from "../store.js";

export function OutSquare() {
  const host = useRef(/** @type {HTMLElement | null} */ (null));
  const empty = useStore(output, (state) => state.painted === 0);
  const progress = useStore(output, (state) => state.progress);
  useEffect(() => void host.current?.prepend(canvas), []);
  return html`
    <div class="square" ref=${host} role="img" aria-label=${empty ? "no picture yet" : "the picture that came out"}>
      ${empty && html`<p class="empty">The picture comes here</p>`}
      ${progress && html`<progress value=${progress.step} max=${progress.steps} aria-label="steps"></progress>`}
    </div>
  `;
}
