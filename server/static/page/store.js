/** State that components and modules share: one object, replaced in part by `set`, watched by `subscribe`. */

import { useEffect, useState } from "preact/hooks";

/** @template {object} T */
export class Store {
  /** @param {NoInfer<T>} state the first state; its type is that of the store, which is declared */
  constructor(state) {
    /** @type {T} */
    this.state = state;
    /** @type {Set<(state: T, before: T) => void>} */
    this._listeners = new Set();
  }

  /**
   * Replace some keys; tell the listeners if any value is another one now.
   * @param {Partial<T>} patch
   */
  set(patch) {
    const before = this.state;
    const keys = /** @type {(keyof T)[]} */ (Object.keys(patch));
    if (keys.every((key) => Object.is(before[key], patch[key]))) return;
    this.state = { ...before, ...patch };
    for (const listener of [...this._listeners]) listener(this.state, before);
  }

  /**
   * Call `listener` after each change; returns what ends that.
   * @param {(state: T, before: T) => void} listener
   */
  subscribe(listener) {
    this._listeners.add(listener);
    return () => void this._listeners.delete(listener);
  }
}

/**
 * What a component reads of a store; it is rendered again when that is another value.
 * @template {object} T
 * @template V
 * @param {Store<T>} store
 * @param {(state: T) => V} select
 * @returns {V}
 */
export function useStore(store, select) {
  const [, again] = useState({});
  const value = select(store.state);
  useEffect(() => {
    let last = value;
    const look = () => {
      const next = select(store.state);
      if (Object.is(next, last)) return;
      last = next;
      again({});
    };
    look(); // it may have changed between rendering and now
    return store.subscribe(look);
  });
  return value;
}
