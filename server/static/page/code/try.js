/** A try of one call of the API: its parameters and body as a form, and the answer as it comes. */

import { useState } from "preact/hooks";

import { html } from "../html.js";
import { Refusal, access, at, reach } from "../server.js";
import { Store, useStore } from "../store.js";
import { faults } from "../words.js";

// What earlier answers named, for later calls: `request_id`, and `name` and `ticket` of an upload.
/** @type {Store<Record<string, string>>} */
const known = new Store({});

/**
 * @typedef {{api: any, path: string, method: string, parameters: any[], kind: string, schema: any}} Call
 * @typedef {{status: string, text: string, pictures: string[]}} Answer
 */

/** @param {Call} props */
export function Try(props) {
  const { api, path, method, parameters, kind, schema } = props;
  const named = useStore(known, (state) => state);
  const [given, setGiven] = useState(/** @type {Record<string, string>} */ ({}));
  const [body, setBody] = useState(/** @type {string | File} */ (schema && kind === "application/json" ? example(api, schema) : ""));
  const [answer, setAnswer] = useState(/** @type {Answer | null} */ (null));
  const valueOf = (/** @type {{name: string}} */ { name }) => given[name] ?? named[name] ?? "";
  const send = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setAnswer({ status: "…", text: "", pictures: [] });
    const values = parameters.map((each) => ({ ...each, value: valueOf(each) })).filter(({ value }) => value !== "");
    const url = at(path.slice(1).replace(/{(\w+)}/g, (_, name) => encodeURIComponent(valueOf({ name }))));
    for (const { name, value } of values.filter((each) => each.in === "query")) url.searchParams.set(name, value);
    const headers = Object.fromEntries(values.filter((each) => each.in === "header").map(({ name, value }) => [name, value]));
    try {
      await (method === "socket" ? converse(url, body, setAnswer) : ask(url, { method, headers, body, kind }, setAnswer));
    } catch (error) {
      setAnswer({ status: "no answer", text: error instanceof Refusal ? error.message : faults.brokeOff, pictures: [] });
    }
  };
  return html`
    <h3>Try it</h3>
    <form onSubmit=${send}>
      ${parameters.map((each) => html`
        <label key=${each.name}>${each.name} <small>${each.in}</small>
          <input value=${valueOf(each)} required=${each.required} onInput=${(/** @type {any} */ { target }) => setGiven({ ...given, [each.name]: target.value })} />
        </label>`)}
      ${kind === "application/json" && html`<label>Body
        <textarea rows="8" value=${body} spellcheck=${false} onInput=${(/** @type {any} */ { target }) => setBody(target.value)}></textarea></label>`}
      ${kind === "application/octet-stream" && html`<label>File
        <input type="file" required onChange=${(/** @type {any} */ { target }) => setBody(target.files[0])} /></label>`}
      <button class="main">Send</button>
    </form>
    ${answer && html`<div role="status"><p><b>${answer.status}</b></p>
      ${answer.pictures.map((url) => html`<img key=${url} src=${url} alt="a picture that came out" />`)}
      ${answer.text && html`<pre tabindex="0">${answer.text}</pre>`}</div>`}
  `;
}

/** A schema with what it refers to. @param {any} api @param {any} schema @returns {any} */
export function resolved(api, schema) {
  if (schema.$ref) return resolved(api, api.components.schemas[schema.$ref.split("/").pop()]);
  const parts = (schema.allOf ?? []).map((/** @type {any} */ each) => resolved(api, each));
  return parts.length === 0 ? schema : Object.assign({}, ...parts, { properties: Object.assign({}, ...parts.map((/** @type {any} */ { properties }) => properties)) });
}

/** A body of the fields that a call must have, and those that have an example. @param {any} api @param {any} schema */
function example(api, schema) {
  const { properties = {}, required = [] } = resolved(api, schema);
  const shown = Object.entries(properties).filter(([name, field]) => field.example !== undefined || required.includes(name));
  const body = Object.fromEntries(shown.map(([name, field]) => [name, field.example ?? ""]));
  return JSON.stringify("sync_mode" in properties ? { ...body, sync_mode: true } : body, null, 2);
}

/**
 * @param {URL} url
 * @param {{method: string, headers: Record<string, string>, body: string | File, kind: string}} request
 * @param {(answer: Answer) => void} tell
 */
async function ask(url, { method, headers, body, kind }, tell) {
  const all = { ...headers, ...(kind && { "Content-Type": body instanceof File ? body.type : kind }) };
  if (access.state.key) Object.assign(all, { Authorization: `Key ${access.state.key}` });
  const begun = performance.now();
  const answer = await reach(url, { method: method.toUpperCase(), headers: all, body: kind ? body : undefined });
  const status = () => `${answer.status} ${answer.statusText}, ${Math.round(performance.now() - begun)} ms`;
  if (answer.status === 401) access.set({ wanted: true });
  const type = answer.headers.get("Content-Type") ?? "";
  if (type.startsWith("image/")) return tell({ status: status(), text: "", pictures: [URL.createObjectURL(await answer.blob())] });
  const reader = answer.body?.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let piece = await reader?.read(); piece && !piece.done; piece = await reader?.read()) {
    text += piece.value;
    if (type.startsWith("text/event-stream")) tell({ status: status(), ...shown(text.split("\n\n").filter((each) => each.startsWith("data: ")).map((each) => each.slice(6))) });
  }
  if (!type.startsWith("text/event-stream")) tell({ status: status(), ...shown([text]) });
}

/** One frame to a socket, and what comes back. @param {URL} url @param {string | File} body @param {(answer: Answer) => void} tell */
function converse(url, body, tell) {
  url.protocol = url.protocol.replace("http", "ws");
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url);
    socket.onopen = () => socket.send(body);
    socket.onerror = () => reject(new Refusal(faults.noSocket));
    socket.onmessage = ({ data }) => {
      tell({ status: "answer", ...shown([data]) });
      socket.close(1000);
      resolve(undefined);
    };
  });
}

/** Texts as they are read: JSON indented, pictures apart. @param {string[]} texts */
function shown(texts) {
  /** @type {string[]} */
  const pictures = [];
  const told = texts.map((text) => {
    try {
      const value = JSON.parse(text);
      note(value);
      pictures.push(...(value.images ?? []).map((/** @type {{url: string}} */ { url }) => url));
      return JSON.stringify(value, (_, each) => (typeof each === "string" && each.length > 200 ? `${each.slice(0, 100)}…` : each), 2);
    } catch {
      return text; // no JSON: it is shown as it is
    }
  });
  return { text: told.join("\n"), pictures: pictures.slice(-1).filter((url) => url.startsWith("data:") || url.startsWith(at("").href)) };
}

/** @param {any} value */
function note({ request_id: id, upload_url: upload }) {
  if (id) known.set({ request_id: id });
  if (!upload) return;
  const url = new URL(upload);
  known.set({ name: String(url.pathname.split("/").pop()), ticket: String(url.searchParams.get("ticket")) });
}
