/** The square of the picture that goes in, and under it the tools to draw on it. */

import { useEffect, useRef } from "preact/hooks";

import { html } from "../html.js";
import { Icon } from "../icons.js";
import { useStore } from "../store.js";
import "./drops.js";
import { media, useCamera } from "./media.js";
import { canvas, source } from "./source.js";
import { Tools } from "./tools.js";

const WORDS = { draw: "a drawing", camera: "the camera", screen: "the screen", picture: "a picture" };

export function InSquare() {
  const host = useRef(/** @type {HTMLElement | null} */ (null));
  const kind = useStore(source, (state) => state.kind);
  useEffect(() => void host.current?.append(canvas), []);
  useEffect(() => {
    canvas.role = "img";
    canvas.ariaLabel = `the picture that goes in: ${WORDS[kind]}`;
  }, [kind]);
  return html`
    <div class="paper">
      <div class="square" ref=${host}></div>
      <${Tools} />
      <${Cameras} />
    </div>
  `;
}

/** Which camera, and whether it is a mirror; over a corner of its picture. */
function Cameras() {
  const { running, mirror, cameras, camera } = useStore(media, (state) => state);
  if (running !== "camera") return null;
  return html`
    <div class="cameras">
      <button type="button" aria-label="Mirror" title="Mirror" aria-pressed=${mirror} onClick=${() => media.set({ mirror: !mirror })}>
        <${Icon} name="mirror" /></button>
      ${cameras.length > 1 && html`
        <select aria-label="Which camera" value=${camera} onChange=${(/** @type {any} */ { target }) => useCamera(target.value)}>
          ${cameras.map(({ deviceId, label }) => html`<option key=${deviceId} value=${deviceId}>${label}</option>`)}
        </select>`}
    </div>
  `;
}
