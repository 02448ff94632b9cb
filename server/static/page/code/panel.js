/** The button that shows what is on screen as code, and the way to the API's page. */

import { html } from "../html.js";

export function CodeButtons() {
  return html``;
}
