/** The row of actions above the picture that came out. */

import { html } from "../html.js";

export function Actions() {
  return html`<div class="bar" role="group" aria-label="Result"></div>`;
}
