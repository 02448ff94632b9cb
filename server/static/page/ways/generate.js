/** Generate: one picture by `/stream`, with a preview after each step; ends early when it is cancelled. */

import { uriOf } from "../sources/encoder.js";
import { encoded } from "../sources/source.js";
import { blobOf, output, preview, resultOf, show } from "../output.js";
import { APP, Refusal, askHealth, call, fieldsOf, health, reachable, wordsOf } from "../server.js";
import { dice, settings, values, wrong } from "../settings.js";
import { faults, news } from "../words.js";
import { say, sayWrong, work } from "../work.js";

const QUALITY = 0.92;
// What breaks each time, and not because the server ends, is not for asking again.
const MOST_LOST = 3;

/** @type {AbortController | null} */
let running = null;

export function cancel() {
  running?.abort();
}

/** Make one picture of what is on screen. A second call while one runs does nothing. */
export async function generate() {
  if (work.state.busy) return;
  running = new AbortController();
  work.set({ busy: "generate", said: news.waiting, wrong: false });
  try {
    if (!settings.state.seedLocked) settings.set({ seed: dice() });
    const { signal } = running;
    const what = await asked();
    await patiently(() => stream(what, signal), signal, true);
  } catch (error) {
    report(error, running.signal);
  } finally {
    running = null;
    output.set({ progress: null });
    work.set({ busy: "" });
  }
}

/**
 * What is on screen, as an input of the endpoint and what the result has to remember of it.
 * @param {Partial<import("../settings.js").Settings>} [changes] of the settings, for this one time
 */
export async function asked(changes) {
  const { side, ...given } = { ...values(), side: settings.state.side, ...changes };
  const { blob } = await encoded({ side, quality: QUALITY });
  return { input: { ...given, image_url: await uriOf(blob), sync_mode: true }, values: given, side, blob };
}

/**
 * @param {Awaited<ReturnType<typeof asked>>} what
 * @param {AbortSignal} signal
 */
async function stream(what, signal) {
  const begun = performance.now();
  const answer = await call(`run/${APP}/stream`, { body: what.input, signal });
  /** @type {any} */
  let last = null;
  for await (const told of events(answer)) {
    if (told.progress) {
      say(news.step(told.progress.step, told.progress.steps));
      await preview(blobOf(told.images[0].url), told.progress);
    } else if (told.images) {
      last = told;
    } else {
      throw new Refusal(wordsOf(told, 0), { status: 500, fields: fieldsOf(told.detail) });
    }
  }
  if (!last) throw new Refusal(faults.brokeOff);
  const roundTrip = performance.now() - begun;
  const { values: given, side, blob } = what;
  await show(resultOf(last, { values: given, side, input: blob, roundTrip, live: false }));
  say(words(last, roundTrip));
}

/**
 * Ask once the server is reachable; again while it says that it is too much at once, after the pause that it asks for.
 * @template T
 * @param {() => Promise<T>} ask
 * @param {AbortSignal} signal
 * @param {boolean} [repeats] whether what broke off may be asked again: not, where the server may have taken it
 * @returns {Promise<T>}
 */
export async function patiently(ask, signal, repeats = false) {
  for (let lost = 0; ; ) {
    if (health.state.since) {
      sayWrong(faults.waitsForServer);
      await reachable(signal);
      say(news.waiting);
    }
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (error.status === 429) {
        say(news.again(error.message, error.retryAfter));
        await pause(error.retryAfter * 1000, signal);
      } else if (error.status === 0 && repeats && ++lost <= MOST_LOST) {
        await askHealth();
      } else {
        throw error;
      }
    }
  }
}

/** @param {number} milliseconds @param {AbortSignal} [signal] */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/**
 * The objects of an answer's server-sent events.
 * @param {Response} answer
 */
export async function* events(answer) {
  const reader = /** @type {ReadableStream<Uint8Array>} */ (answer.body).getReader();
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (/** @type {Error} */ (error).name === "AbortError") throw error;
      throw new Refusal(faults.brokeOff);
    }
    if (piece.done) return;
    text += decoder.decode(piece.value, { stream: true }).replaceAll("\r", "");
    const parts = text.split("\n\n");
    text = parts.pop() ?? "";
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:"));
      if (data.length) yield JSON.parse(data.map((line) => line.slice(5)).join("\n"));
    }
  }
}

/** @param {any} told @param {number} roundTrip */
export function words(told, roundTrip) {
  const say = told.nsfw_content_detected.some(Boolean) ? news.blackened : news.made;
  return say(Math.round(roundTrip), told.seed);
}

/**
 * Say what went wrong, and mark the fields that are.
 * @param {unknown} error
 * @param {AbortSignal} [signal]
 */
export function report(error, signal) {
  if (signal?.aborted) {
    say(news.cancelled);
  } else if (error instanceof Refusal) {
    wrong.set(error.fields);
    sayWrong(error.message);
  } else {
    sayWrong(faults.pageFailed);
    throw error;
  }
}
