/** What the page has to say of the server before any picture: not reachable, no weights, a key is wanted. */

import { useState } from "preact/hooks";

import { html } from "./html.js";
import { access, health, useKey } from "./server.js";
import { useStore } from "./store.js";
import { faults } from "./words.js";

export function Notices() {
  const now = useStore(health, (state) => state);
  const wanted = useStore(access, (state) => state.wanted);
  return html`
    <section class="notices" aria-label="Notices">
      ${now.since > 0 && html`<p class="notice bad" role="alert">
        ${faults.unreachableSince(Math.round((now.now - now.since) / 1000))}</p>`}
      ${!now.since && now.state === "SETUP_FAILED" && html`<${SetupFailed} detail=${now.detail} />`}
      ${!now.since && now.state === "DEFUNCT" && html`<p class="notice bad" role="alert">
        ${faults.defunct}${withCode(now.detail)}</p>`}
      ${wanted && html`<${KeyForm} />`}
      ${!now.since && now.notice && html`<${Notice} words=${now.notice} />`}
    </section>
  `;
}

/** Words of the server with `commands` in them, as it writes them. @param {string} words */
export const withCode = (words) => words.split("`").map((part, index) => (index % 2 ? html`<code>${part}</code>` : part));

/** The first sentence, and the rest behind it. @param {{words: string}} props */
function Notice({ words }) {
  const [first, ...rest] = words.split(/(?<=[.;]) /);
  if (rest.length === 0) return html`<p class="notice">${withCode(first)}</p>`;
  return html`
    <details class="notice">
      <summary>${withCode(first)}</summary>
      <p>${withCode(rest.join(" "))}</p>
    </details>
  `;
}

/** The hint of the server, and the command in it to copy. @param {{detail: string}} props */
function SetupFailed({ detail }) {
  const command = /`([^`]+)`/.exec(detail)?.[1] ?? "";
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(command);
    setCopied(true);
  };
  return html`
    <div class="notice bad" role="alert">
      <p>${withCode(detail)}</p>
      ${command && html`<p><code>${command}</code>
        ${navigator.clipboard && html`<button type="button" onClick=${copy}>${copied ? "Copied" : "Copy"}</button>`}</p>`}
      <p>${faults.setupFailed}</p>
    </div>
  `;
}

function KeyForm() {
  const [key, setKey] = useState("");
  const use = (/** @type {Event} */ event) => {
    event.preventDefault();
    if (key.trim()) useKey(key.trim());
  };
  return html`
    <form class="notice" onSubmit=${use}>
      <label>${faults.keyForm}
        <input type="password" autocomplete="off" placeholder="id:secret" value=${key}
          onInput=${(/** @type {any} */ { target }) => setKey(target.value)} />
      </label>
      <button>Use this key</button>
    </form>
  `;
}
