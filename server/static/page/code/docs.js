/** The API as a page, from the server's own document: fields, limits, defaults, answers, errors, and a try of each call. */

import { render } from "preact";
import { useEffect, useState } from "preact/hooks";

import { html } from "../html.js";
import { Notices, withCode } from "../notices.js";
import { at, callJson, watchHealth } from "../server.js";
import { Try, resolved } from "./try.js";

/** @typedef {any} Schema a part of the document */

function Page() {
  const [api, setApi] = useState(/** @type {any} */ (null));
  const [failed, setFailed] = useState("");
  const read = async () => setApi(await callJson("openapi.json"));
  useEffect(() => void read().catch((error) => setFailed(error.message)), []);
  return html`
    <header class="bar"><h1>fourstep: the API</h1>
      <nav class="bar"><a href=${at("").href}>Try it with pictures</a><a href=${at("openapi.json").href}>openapi.json</a></nav>
    </header>
    <main>
      <${Notices} />
      ${failed && html`<p class="wrong" role="alert">${failed}</p>`}
      ${api && html`<${Api} api=${api} />`}
    </main>
  `;
}

/** @param {{api: any}} props */
function Api({ api }) {
  const calls = Object.entries(api.paths).flatMap(([path, item]) => operations(path, item));
  return html`
    <p class="soft">At ${withCode(api.servers.map((/** @type {{url: string}} */ { url }) => `\`${url}\``).join(", "))}. ${api.info.description}</p>
    <p class="soft">${" "}<code>Authorization</code>: ${withCode(api.components.securitySchemes.apiKeyAuth.description)}</p>
    <h2>Calls</h2>
    ${calls.map((each) => html`<${Operation} key=${each.method + each.path} api=${api} ...${each} />`)}
    <h2>Words for errors</h2>
    <p class="soft">In <code>error_type</code>, and the header <code>X-Fal-Error-Type</code>.</p>
    <${Table} head=${["Word", "Status"]} rows=${Object.entries(api["x-error-types"]).map(([word, status]) => [html`<code>${word}</code>`, status])} />
  `;
}

/** The calls of one path; a socket is one too. @param {string} path @param {any} item */
function operations(path, item) {
  const { parameters = [], summary, ...methods } = item;
  if (item["x-websocket"]) return [{ path, method: "socket", operation: { parameters, summary, tags: ["Realtime"] }, socket: item["x-websocket"] }];
  return Object.entries(methods).map(([method, operation]) => ({ path, method, operation, socket: null }));
}

/** @param {{api: any, path: string, method: string, operation: any, socket: any}} props */
function Operation({ api, path, method, operation, socket }) {
  const body = socket ? { "application/json": { schema: socket.send } } : operation.requestBody?.content;
  const [kind, { schema }] = body ? Object.entries(body)[0] : ["", { schema: null }];
  /** @type {[string, any][]} */
  const answers = socket ? [["answer", { description: socket.description, content: { json: { schema: socket.receive } } }]] : Object.entries(operation.responses);
  return html`
    <details class="call">
      <summary><b class="method">${method.toUpperCase()}</b> <code>${path}</code> <span>${withCode(operation.summary)}</span></summary>
      ${operation.parameters?.length > 0 && html`<h3>Parameters</h3><${Parameters} list=${operation.parameters} />`}
      ${schema && html`<h3>${socket ? "Each input" : "Body"} <small>${kind}</small></h3><${Fields} api=${api} schema=${schema} />`}
      <h3>Answers</h3>
      <${Table} head=${["Status", "Says"]} rows=${answers.map(([status, answer]) => [status, html`
        ${withCode(answer.description)} ${success(status) && content(answer).map(([type, each]) => html`<small>${type}</small>
          <${Fields} api=${api} schema=${each.schema} />`)}`])} />
      <${Try} api=${api} path=${path} method=${method} parameters=${operation.parameters ?? []} kind=${kind} schema=${schema} />
    </details>
  `;
}

/** @param {string} status */
const success = (status) => status.startsWith("2") || status === "answer";
/** @param {any} answer @returns {[string, any][]} */
const content = (answer) => Object.entries(answer.content ?? {});

/** @param {{list: any[]}} props */
const Parameters = ({ list }) => html`
  <${Table} head=${["Name", "Where", "What", "Limits"]} rows=${list.map(({ name, in: where, required, description, schema }) => [
    html`<code>${name}</code>${required && html` <small>required</small>`}`, where, withCode(description ?? schema.description ?? ""), limits(schema)])} />
`;

/** The fields of an object, or of what an event's data holds. @param {{api: any, schema: Schema}} props */
function Fields({ api, schema }) {
  const { properties = {}, required = [] } = resolved(api, schema.properties?.data?.["x-contentSchema"] ?? schema);
  const rows = Object.entries(properties).map(([name, field]) => [
    html`<code>${name}</code>${required.includes(name) && html` <small>required</small>`}`,
    typeOf(field),
    withCode(field.description ?? ""),
    limits(field),
  ]);
  return rows.length > 0 && html`<${Table} head=${["Field", "Type", "What", "Limits"]} rows=${rows} />`;
}

/** @param {Schema} field @returns {string} */
function typeOf(field) {
  if (field.$ref) return field.$ref.split("/").pop();
  return field.type === "array" ? `list of ${typeOf(field.items)}` : `${field.type ?? "any"}${field.nullable ? " or null" : ""}`;
}

/** @param {Schema} field */
function limits({ minimum, maximum, maxLength, enum: words, default: usual }) {
  return [
    minimum !== undefined && (maximum === undefined ? `from ${minimum}` : `${number(minimum)} to ${number(maximum)}`),
    maxLength && `at most ${maxLength} characters`,
    words?.join(", "),
    usual !== undefined && usual !== null && `default ${JSON.stringify(usual)}`,
  ]
    .filter(Boolean)
    .join("; ");
}

/** A number, in few digits where JavaScript has not all of them. @param {number} value */
const number = (value) => (Math.abs(value) <= Number.MAX_SAFE_INTEGER ? value : value.toPrecision(2));

/** @param {{head: string[], rows: any[][]}} props */
const Table = ({ head, rows }) => html`
  <div class="table" tabindex="0"><table>
    <thead><tr>${head.map((each) => html`<th scope="col">${each}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr>${row.map((cell) => html`<td>${cell}</td>`)}</tr>`)}</tbody>
  </table></div>
`;

render(html`<${Page} />`, document.body);
void watchHealth();
