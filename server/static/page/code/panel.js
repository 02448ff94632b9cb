/** Code: what is on screen as a program to copy. */

import { useRef, useState } from "preact/hooks";

import { html } from "../html.js";
import { Icon } from "../icons.js";
import { saveFile } from "../results/save.js";
import { access, at } from "../server.js";
import { settings, values } from "../settings.js";
import { encoded } from "../sources/source.js";
import { useStore } from "../store.js";
import { CALLS, placeOf, snippet } from "./snippets.js";

/** @type {Record<string, string>} */
const WORDS = { run: "Run", queue: "Queue", stream: "Stream", realtime: "Realtime" };
/** @type {Record<string, string>} */
const ABOUT = {
  run: "One call that waits for the picture.",
  queue: "A job that survives a restart of your program, and of the server.",
  stream: "A preview after each step.",
  realtime: "One socket for pictures that change all the time.",
};

/** @param {{document: any}} props */
export function Panel({ document }) {
  useStore(settings, (state) => state);
  const key = useStore(access, (state) => state.key);
  const [choice, setChoice] = useState({ language: "JavaScript", call: "run", picture: "file", way: "address" });
  const place = placeOf(document, at("").href, key !== "");
  const choose = (/** @type {Partial<typeof choice>} */ change) => {
    const next = { ...choice, ...change };
    setChoice({ ...next, call: CALLS[next.language].includes(next.call) ? next.call : "run" });
  };
  const { setup, program, note } = snippet(choice, values(), place);
  return html`
    <div class="choices">
      <${Choices} name="language" label="Language" options=${Object.keys(CALLS).map((each) => [each, each])} ...${{ choice, choose }} />
      <${Choices} name="call" label="Call" options=${CALLS[choice.language].map((each) => [each, WORDS[each]])} ...${{ choice, choose }} />
      <${Choices} name="picture" label="Picture" options=${[["file", "File"], ["url", "URL"]]} ...${{ choice, choose }} />
      ${place.takeover && html`<${Choices} name="way" label="Reached by" ...${{ choice, choose }}
        options=${[["address", "its address"], ["takeover", "fal's names"]]} />`}
    </div>
    <p class="soft">${ABOUT[choice.call]}
      ${choice.picture === "file" && html` The picture lies beside the program:${" "}
        <button type="button" class="link" onClick=${savePicture}>save it as input.jpg</button>.`}</p>
    ${note && html`<p class="notice">${note}</p>`}
    ${setup && html`<${Text} name="setup" label="First, in the shell" text=${setup} />`}
    <${Text} name="program" label=${setup ? "Then" : ""} text=${program} />
  `;
}

/**
 * @param {{name: "language" | "call" | "picture" | "way", label: string, options: [string, string][],
 *   choice: Record<string, string>, choose: (change: Record<string, string>) => void}} props
 */
function Choices({ name, label, options, choice, choose }) {
  return html`
    <fieldset class="bar">
      <legend class="hidden">${label}</legend>
      ${options.map(([value, words]) => html`
        <label class="button" key=${value}>
          <input class="hidden" type="radio" name=${name} checked=${choice[name] === value} onChange=${() => choose({ [name]: value })} />
          ${words}</label>
      `)}
    </fieldset>
  `;
}

/** A text to copy. @param {{name: string, label: string, text: string}} props */
function Text({ name, label, text }) {
  const shown = useRef(/** @type {HTMLElement | null} */ (null));
  const [copied, setCopied] = useState("");
  const copy = async () => {
    await copyText(text, /** @type {HTMLElement} */ (shown.current));
    setCopied(text);
  };
  return html`
    <figure class="text">
      <figcaption class="bar"><span>${label}</span>
        <button type="button" onClick=${copy}><${Icon} name="copy" /> ${copied === text ? "Copied" : "Copy"}</button>
      </figcaption>
      <pre ref=${shown} id=${`code-${name}`} tabindex="0">${text}</pre>
    </figure>
  `;
}

/** An insecure page has no clipboard; what is selected can be copied there. @param {string} text @param {HTMLElement} shown */
async function copyText(text, shown) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  getSelection()?.selectAllChildren(shown);
  document.execCommand("copy");
}

async function savePicture() {
  const { blob } = await encoded({ side: settings.state.side, quality: 0.92 });
  saveFile(blob, "input.jpg");
}
