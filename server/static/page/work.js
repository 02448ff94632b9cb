/** What is being asked for, by whichever way: one thing at a time, and what is said of it. */

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
