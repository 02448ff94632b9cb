/** What is being asked for, by whichever way: one thing at a time, and what is said of it. */

import { health } from "./server.js";
import { Store } from "./store.js";

/**
 * `busy`: what runs; `said`: the last words of it; `wrong`: whether they tell of a failure.
 * @type {Store<{busy: "" | "generate" | "queue" | "live" | "grid", said: string, wrong: boolean}>}
 */
export const work = new Store({ busy: "", said: "", wrong: false });

/** @param {string} words */
export const say = (words) => work.set({ said: words, wrong: false });

/** @param {string} words */
export const sayWrong = (words) => work.set({ said: words, wrong: true });

// What was said while the server could not serve goes once it can.
health.subscribe((now, before) => {
  if (!serves(before) && serves(now) && work.state.wrong && !work.state.busy) say("");
});

/** @param {import("./server.js").Health} now */
const serves = ({ since, state }) => !since && state !== "SETUP_FAILED" && state !== "DEFUNCT";
