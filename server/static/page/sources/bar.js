/** The row of sources above the picture that goes in. */

import { html } from "../html.js";
import { Icon } from "../icons.js";
import { onKey } from "../shortcuts.js";
import { useStore } from "../store.js";
import { media, toggle } from "./media.js";
import { source, useLastPicture, usePicture, useWhite } from "./source.js";

/** @type {HTMLInputElement | null} */
let chooser = null;

const ACTS = /** @type {[import("./source.js").Kind, string, () => void][]} */ ([
  ["draw", "Draw", useWhite],
  ["camera", "Camera", () => toggle("camera")],
  ["screen", "Screen", () => toggle("screen")],
  ["picture", "Picture", () => chooser?.click()],
]);

ACTS.forEach(([, words, act], index) => onKey(String(index + 1), words, act));

export function SourceBar() {
  const kind = useStore(source, (state) => state.kind);
  const { running } = useStore(media, (state) => state);
  const stopped = (kind === "camera" || kind === "screen") && running !== kind;
  return html`
    <div class="bar" role="group" aria-label="Source">
      ${ACTS.map(([each, words, act], index) => html`
        <button type="button" key=${each} aria-pressed=${kind === each && !stopped} title=${`${words} (${index + 1})`} onClick=${act}>
          <${Icon} name=${each} /> <span class="word">${words}</span></button>`)}
      <${File} />
    </div>
    <${Said} />
  `;
}

function File() {
  const choose = (/** @type {any} */ { target }) => {
    if (target.files[0]) void usePicture(target.files[0]);
    target.value = ""; // the same file may be chosen again
  };
  return html`
    <input ref=${(/** @type {any} */ input) => (chooser = input)} hidden type="file" accept="image/*" aria-label="Picture file"
      onChange=${choose} onCancel=${useLastPicture} />
  `;
}

/** Why a source gives no picture; the page that makes https possible is linked where it would help. */
function Said() {
  const { said, trust } = useStore(source, (state) => state);
  return html`<p class="wrong" role="alert">${said}${trust && html` <a href="./trust">How to open this page by https</a>`}</p>`;
}
