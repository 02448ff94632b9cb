/** Queue: jobs that outlive the page. Their ids are kept in this tab, so that a reload finds them again. */

import { resultOf, show } from "../output.js";
import { APP, Refusal, call, callJson, reachable } from "../server.js";
import { dice, settings } from "../settings.js";
import { Store } from "../store.js";
import { faults, news } from "../words.js";
import { say } from "../work.js";
import { asked, patiently, pause, report, words } from "./generate.js";

/**
 * @typedef {import("../settings.js").Values} Values
 * @typedef {{id: string, status: string, position: number | null, lines: string[], values: Values, side: number}} Job
 */

const KEPT = "fourstep.jobs";
const POLL_MS = 500;

/** @type {Store<{jobs: Job[]}>} the newest first */
export const queue = new Store({ jobs: kept() });

queue.subscribe(({ jobs }) => sessionStorage.setItem(KEPT, JSON.stringify(jobs)));

/** @returns {Job[]} */
function kept() {
  try {
    const jobs = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
    return Array.isArray(jobs) ? jobs : [];
  } catch {
    return []; // another program has written there
  }
}

// What a job was made from: it is not kept over a reload, since pictures are too large for the tab's store.
/** @type {Map<string, Blob>} */
const inputs = new Map();

/** Follow again what a reload has interrupted. */
export function resume() {
  for (const job of queue.state.jobs) void follow(job.id);
}

/** Put what is on screen into the queue. */
export async function submit() {
  const controller = new AbortController();
  try {
    if (!settings.state.seedLocked) settings.set({ seed: dice() });
    const { input, values, side, blob } = await asked();
    const body = { ...input, sync_mode: undefined };
    const { request_id: id } = await patiently(() => callJson(`queue/${APP}`, { body }), controller.signal);
    inputs.set(id, blob);
    /** @type {Job} */
    const job = { id, status: "IN_QUEUE", position: null, lines: [], values, side };
    queue.set({ jobs: [job, ...queue.state.jobs] });
    say(news.queued);
    void follow(id);
  } catch (error) {
    report(error);
  }
}

/** Forget a job, and have the server end it; a job that can't be ended is followed again. @param {string} id */
export async function cancelJob(id) {
  const job = queue.state.jobs.find((each) => each.id === id);
  forgetJob(id);
  try {
    await call(`queue/${APP}/requests/${id}/cancel`, { method: "PUT" });
    say(news.cancelled);
  } catch (error) {
    if (error instanceof Refusal && error.status === 400) return; // it has ended meanwhile
    if (job) queue.set({ jobs: [job, ...queue.state.jobs] });
    void follow(id);
    report(error);
  }
}

/** @param {string} id */
export function forgetJob(id) {
  inputs.delete(id);
  queue.set({ jobs: queue.state.jobs.filter((job) => job.id !== id) });
}

/** Ask for a job's status until it has ended; then show its picture. @param {string} id */
async function follow(id) {
  const controller = new AbortController();
  while (queue.state.jobs.some((job) => job.id === id)) {
    try {
      const told = await callJson(`queue/${APP}/requests/${id}/status?logs=1`);
      change(id, {
        status: told.status,
        position: told.queue_position ?? null,
        lines: (told.logs ?? []).map((/** @type {{message: string}} */ { message }) => message),
      });
      if (told.status === "COMPLETED") return await finish(id);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (!isPassing(error) && error.status < 500) {
        change(id, { status: "GONE", lines: [error.message] });
        return;
      }
    }
    await pause(POLL_MS, controller.signal);
    await reachable(controller.signal);
  }
}

/** Not reachable, or too much at once: the job is safe, so ask again. @param {Refusal} refusal */
const isPassing = ({ status }) => status === 0 || status === 429;

/** @param {string} id */
async function finish(id) {
  const begun = queue.state.jobs.find((job) => job.id === id);
  if (!begun) return;
  try {
    const told = await callJson(`queue/${APP}/requests/${id}`);
    const pictures = await Promise.all(told.images.map(fetched));
    const { values, side } = begun;
    const input = inputs.get(id) ?? null;
    await show(resultOf(told, { values, side, input, roundTrip: 0, live: false }, pictures));
    say(words(told, (told.timings.inference ?? 0) * 1000));
    forgetJob(id);
  } catch (error) {
    const refusal = error instanceof Refusal ? error : null;
    if (refusal && isPassing(refusal)) throw error;
    change(id, { status: "FAILED", lines: [refusal?.message ?? faults.pageFailed] });
    if (!refusal) throw error;
  }
}

/** @param {{url: string}} image @returns {Promise<Blob>} */
async function fetched({ url }) {
  const { pathname } = new URL(url);
  // By the page's own way to the server: the link may name another of its hosts.
  const answer = await call(pathname.slice(pathname.indexOf("/cdn/") + 1));
  return answer.blob();
}

/** @param {string} id @param {Partial<Job>} patch */
function change(id, patch) {
  queue.set({ jobs: queue.state.jobs.map((job) => (job.id === id ? { ...job, ...patch } : job)) });
}
