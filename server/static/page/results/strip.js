/** The strip of results below everything. */

import { html } from "../html.js";

export function Strip() {
  return html`<section class="strip" aria-label="Results"></section>`;
}
