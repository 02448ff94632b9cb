/** The buttons on top: code, whose panel is loaded when it is opened, and the way to the API's page. */

import { useEffect, useRef, useState } from "preact/hooks";

import { html } from "../html.js";
import { Icon } from "../icons.js";
import { at, callJson } from "../server.js";
import { onKey } from "../shortcuts.js";

export function CodeButtons() {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const [shown, setShown] = useState(/** @type {{Panel: typeof import("./panel.js").Panel, document: any} | null} */ (null));
  const [failed, setFailed] = useState("");
  const open = async () => {
    if (dialog.current?.open) return;
    dialog.current?.showModal();
    try {
      const document = await callJson("openapi.json");
      const { Panel } = await import("./panel.js");
      setShown({ Panel, document });
      setFailed("");
    } catch (error) {
      setFailed(/** @type {Error} */ (error).message);
    }
  };
  useEffect(() => onKey("c", "Code", () => void open()), []);
  return html`
    <button type="button" onClick=${open}><${Icon} name="code" /> <span class="word">Code</span></button>
    <a class="button" href=${at("docs").href} target="_blank">API</a>
    <dialog class="code" ref=${dialog} aria-labelledby="code-title">
      <form method="dialog" class="bar">
        <h2 id="code-title">What is on screen, as code</h2>
        <button class="square-button" aria-label="Close"><${Icon} name="close" /></button>
      </form>
      ${failed && html`<p class="wrong" role="alert">${failed}</p>`}
      ${shown && html`<${shown.Panel} document=${shown.document} />`}
    </dialog>
  `;
}
