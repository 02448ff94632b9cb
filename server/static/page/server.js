/** The server that this page comes from: calls, their errors in words, its health, the key. */

import { Store } from "./store.js";
import { faults } from "./words.js";

export const APP = "fal-ai/lcm-sd15-i2i";

// Under a path of a proxy too: every URL is relative to the page's own.
const BASE = new URL("./", document.baseURI);
// A server that says nothing for as long as this is as good as gone.
const HEALTH_MS = 5000;

/** @param {string} path relative to the page */
export const at = (path) => new URL(path, BASE);

/**
 * How the server is; `since`: when it was first not reachable, in milliseconds since 1970, 0 while it is.
 * @typedef {{state: string, detail: string, notice: string, since: number, now: number,
 *   engines: {device: string, state: string, model: string, torch: string, dtype: string}[],
 *   queue: {waiting: number, running: number}, version?: string}} Health
 */

/** @type {Store<Health>} */
export const health = new Store({
  state: "CONNECTING",
  detail: "",
  notice: "",
  since: 0,
  now: Date.now(),
  engines: [],
  queue: { waiting: 0, running: 0 },
});

// The key stays in this tab: sessionStorage ends with it.
const KEPT = "fourstep.key";

/**
 * The API key; `wanted`: the server has refused a call without a good one.
 * @type {Store<{key: string, wanted: boolean}>}
 */
export const access = new Store({ key: sessionStorage.getItem(KEPT) ?? "", wanted: false });

/** @param {string} key `id:secret` */
export function useKey(key) {
  sessionStorage.setItem(KEPT, key);
  access.set({ key, wanted: false });
}

/** What the server has refused, or that it could not be asked, in words for the page. */
export class Refusal extends Error {
  /**
   * @param {string} words
   * @param {{status?: number, fields?: Record<string, string>, retryAfter?: number}} [more]
   *   `status` 0: not reachable; `retryAfter`: seconds until another try makes sense, 0 if none does
   */
  constructor(words, { status = 0, fields = {}, retryAfter = 0 } = {}) {
    super(words);
    this.status = status;
    this.fields = fields;
    this.retryAfter = retryAfter;
  }
}

/**
 * Ask the server. Raises `Refusal` unless the answer is a success, and `AbortError` when `signal` says so.
 * @param {string} path
 * @param {{body?: unknown, method?: string, signal?: AbortSignal}} [options] `body`: an object for JSON
 */
export async function call(path, { body, method = body === undefined ? "GET" : "POST", signal } = {}) {
  /** @type {Record<string, string>} */
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (access.state.key) headers.Authorization = `Key ${access.state.key}`;
  const answer = await reach(at(path), { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal });
  if (health.state.since) wake();
  if (!answer.ok) throw await refused(answer);
  return answer;
}

/**
 * `fetch`, whose failure is a `Refusal` in words.
 * @param {URL} url
 * @param {RequestInit} request
 */
export async function reach(url, request) {
  try {
    return await fetch(url, request);
  } catch (error) {
    if (request.signal?.aborted) throw error;
    if (!health.state.since) health.set({ since: Date.now(), now: Date.now() });
    throw new Refusal(faults.unreachable);
  }
}

/**
 * The value in the server's answer. Raises as `call` does, and for an answer that is no JSON: a proxy may have made it.
 * @param {string} path
 * @param {Parameters<typeof call>[1]} [options]
 * @returns {Promise<any>}
 */
export async function callJson(path, options) {
  const answer = await call(path, options);
  try {
    return await answer.json();
  } catch (error) {
    if (options?.signal?.aborted) throw error;
    throw new Refusal(error instanceof SyntaxError ? faults.foreign : faults.brokeOff);
  }
}

/** @param {Response} answer */
async function refused(answer) {
  const told = await answer.json().catch(() => ({}));
  const { status } = answer;
  if (status === 401) access.set({ wanted: true });
  const more = { status, fields: fieldsOf(told.detail), retryAfter: Number(answer.headers.get("Retry-After")) || 0 };
  if (status === 429) more.retryAfter ||= 1;
  return new Refusal(wordsOf(told, status), more);
}

/**
 * An error's words: fal's `detail` or `message`, else what its status means.
 * @param {{detail?: any, message?: string}} told
 * @param {number} status
 */
export function wordsOf(told, status) {
  if (status === 401) return faults.keyWanted;
  if (status === 413) return faults.tooLarge;
  if (Array.isArray(told.detail)) return told.detail.map((/** @type {any} */ each) => said(each)).join("; ");
  return String(told.detail || told.message || faults.status(status));
}

/** @param {{loc?: unknown[], msg?: string}} item */
const said = ({ loc = [], msg = "" }) => [loc.at(-1) === "body" ? "" : loc.at(-1), msg].filter(Boolean).join(": ");

/**
 * The fields that an error names, each with the server's own words.
 * @param {any} detail
 * @returns {Record<string, string>}
 */
export function fieldsOf(detail) {
  if (!Array.isArray(detail)) return {};
  return Object.fromEntries(detail.filter((each) => each.loc?.length > 1).map(({ loc, msg }) => [loc.at(-1), msg]));
}

/**
 * A token for one socket; "" where there are no keys.
 * @param {string} app the alias
 */
export async function token(app) {
  if (!access.state.key) return "";
  return String(await callJson("rest/tokens/", { body: { allowed_apps: [app], token_expiration: 60 } }));
}

let wake = () => {};

addEventListener("online", () => wake());
document.addEventListener("visibilitychange", () => wake());

/** Ask for the server's health now and from then on: often while it changes, never in a hidden tab. */
export async function watchHealth() {
  for (;;) {
    if (!document.hidden) await askHealth();
    const { state, since } = health.state;
    const seconds = since || state === "READY" || state === "BUSY" ? 2 : 0.5;
    await new Promise((resolve) => {
      wake = () => resolve(undefined);
      setTimeout(wake, seconds * 1000);
    });
  }
}

export async function askHealth() {
  try {
    const told = await callJson("health", { signal: AbortSignal.timeout(HEALTH_MS) });
    if (typeof told?.state !== "string") throw new Refusal(faults.foreign);
    health.set({ ...told, since: 0, now: Date.now() });
  } catch {
    // No answer, or too late, or of something else in the server's place: whatever it is, the server isn't there.
    health.set({ since: health.state.since || Date.now(), now: Date.now() });
  }
}

/** Resolves when the server is reachable again. @returns {Promise<void>} */
export function back() {
  return new Promise((resolve) => {
    const stop = health.subscribe((now, before) => {
      if (now.since || !before.since) return;
      stop();
      resolve();
    });
  });
}

/** Resolves once the server is reachable: at once if it is. @param {AbortSignal} signal @returns {Promise<void>} */
export function reachable(signal) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason);
    if (!health.state.since) return resolve();
    const stop = health.subscribe(({ since }) => {
      if (since) return;
      stop();
      resolve();
    });
    signal.addEventListener("abort", () => {
      stop();
      reject(signal.reason);
    });
  });
}
