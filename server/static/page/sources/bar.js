/** The row of sources above the picture that goes in. */

import { html } from "../html.js";
import { Icon } from "../icons.js";
import { useStore } from "../store.js";
import { source, usePicture } from "./source.js";

export function SourceBar() {
  const said = useStore(source, (state) => state.said);
  const choose = async (/** @type {Event} */ event) => {
    const [file] = /** @type {HTMLInputElement} */ (event.target).files ?? [];
    if (!file) return;
    await usePicture(file).catch(() => source.set({ said: "This is no picture that the browser can read" }));
  };
  return html`
    <div class="bar" role="group" aria-label="Source">
      <label class="button"><${Icon} name="picture" /> Picture
        <input class="hidden" type="file" accept="image/*" onChange=${choose} />
      </label>
    </div>
    ${said && html`<p class="wrong" role="alert">${said}</p>`}
  `;
}
