/** The square of the picture that goes in. */

import { useEffect, useRef } from "preact/hooks";

import { html } from "../html.js";
import { canvas } from "./source.js";

export function InSquare() {
  const host = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => void host.current?.append(canvas), []);
  return html`<div class="square" ref=${host} role="img" aria-label="the picture that goes in"></div>`;
}
