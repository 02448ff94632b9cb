/** The foot of the page: the versions, and the list of keys. */

import { useEffect, useRef } from "preact/hooks";

import { html } from "./html.js";
import { health } from "./server.js";
import { onKey, shortcuts } from "./shortcuts.js";
import { useStore } from "./store.js";

export function Foot() {
  const now = useStore(health, (state) => state);
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const open = () => dialog.current?.showModal();
  useEffect(() => onKey("?", "This list", open), []);
  const { model, torch, dtype } = now.engines[0] ?? {};
  const parts = [`fourstep ${now.version ?? ""}`, torch && `torch ${torch}`, model, dtype].filter(Boolean);
  return html`
    <footer>
      <span>${parts.join(" · ")}</span>
      <button type="button" class="plain" onClick=${open}>Keys</button>
    </footer>
    <dialog ref=${dialog} aria-label="Keys">
      <dl class="keys">
        ${shortcuts.map(({ key, words, control, shift }) => html`
          <div key=${words}><dt><kbd>${[control && "Ctrl", shift && "Shift", key].filter(Boolean).join("+")}</kbd></dt><dd>${words}</dd></div>
        `)}
      </dl>
      <form method="dialog"><button>Close</button></form>
    </dialog>
  `;
}
