/**
 * Live: every change is painted, over one realtime socket with one frame in flight; what changes meanwhile is one next
 * frame, so that the newest wins. Where the network is the slow part, smaller and coarser JPEGs are sent.
 */

import { encoded, source } from "../sources/source.js";
import { resultOf, show } from "../output.js";
import { APP, Refusal, access, at, fieldsOf, token, wordsOf } from "../server.js";
import { noneWrong, settings, values, wrong } from "../settings.js";
import { Store } from "../store.js";
import { say, sayWrong, work } from "../work.js";
import { report } from "./generate.js";

// From what looks best to what a slow network carries: JPEG quality, and the share of the chosen side.
const GRADES = [
  { quality: 0.92, share: 1 },
  { quality: 0.8, share: 1 },
  { quality: 0.65, share: 0.75 },
  { quality: 0.5, share: 0.5 },
];
// The network is the slow part when it takes this share of a round trip, and more than this many milliseconds.
const SLOW_SHARE = 0.6;
const SLOW_MS = 60;
// Frames after which the grade may change again.
const GRADE_FRAMES = 12;
const PAUSES_S = [0.5, 1, 2, 4, 8];
const ANSWER_S = 30;

/**
 * `dropped`: changes that no frame showed; `roundTrip`: milliseconds, smoothed; `grade`: index into what is sent.
 * @type {Store<{on: boolean, connected: boolean, rate: number, roundTrip: number, dropped: number, grade: number}>}
 */
export const live = new Store({ on: false, connected: false, rate: 0, roundTrip: 0, dropped: 0, grade: 0 });

/** @type {Session | null} */
let session = null;

export function toggleLive() {
  live.state.on ? stopLive() : startLive();
}

export function startLive() {
  if (live.state.on || work.state.busy) return;
  live.set({ on: true, rate: 0, roundTrip: 0, dropped: 0, grade: 0 });
  work.set({ busy: "live", said: "Connecting …", wrong: false });
  session = new Session();
  void session.run();
}

/** @param {string} [why] */
export function stopLive(why = "Live is off") {
  if (!live.state.on) return;
  session?.end();
  session = null;
  live.set({ on: false, connected: false });
  work.set({ busy: "" });
  say(why);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) stopLive("Live has stopped while the page was hidden");
});

/** From the switch to the switch; sockets come and go. */
class Session {
  constructor() {
    this.ended = false;
    this.unauthorized = false;
    /** @type {WebSocket | null} */
    this.socket = null;
    this.failures = 0;
    this.sent = 0;
    this.version = -1;
    /** @type {number[]} the times of the last answers */
    this.times = [];
    this.sinceGrade = 0;
    this.wake = () => {};
    const changed = () => this.wake();
    this.unwatch = [source.subscribe(changed), settings.subscribe(changed)];
    /** @type {unknown} */
    this.settings = null;
  }

  end() {
    this.ended = true;
    for (const stop of this.unwatch) stop();
    this.wake();
    this.socket?.close(1000);
  }

  async run() {
    while (!this.ended) {
      try {
        await this.connect();
        await this.serve();
      } catch (error) {
        if (this.ended) return;
        if (!(error instanceof Lost)) {
          stopLive();
          report(error);
          return;
        }
        live.set({ connected: false });
        const seconds = PAUSES_S[Math.min(this.failures++, PAUSES_S.length - 1)];
        sayWrong(`${error.message}; again in ${seconds} s`);
        await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
      }
    }
  }

  async connect() {
    const url = at(`run/${APP}/realtime`);
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("max_buffering", "1");
    const secret = await token(APP.split("/")[1]).catch((error) => {
      if (error.status === 0) throw new Lost(error.message);
      throw error;
    });
    if (secret) url.searchParams.set("fal_jwt_token", secret);
    const socket = (this.socket = new WebSocket(url));
    this.unauthorized = false;
    // A refused key is said before any frame is sent.
    socket.onmessage = ({ data }) => (this.unauthorized ||= JSON.parse(data).status === "error");
    await new Promise((resolve, reject) => {
      socket.onopen = resolve;
      socket.onerror = socket.onclose = () => reject(new Lost("The server is not reachable"));
    });
    if (this.ended) return socket.close(1000);
    live.set({ connected: true });
    say("Live");
  }

  /** Send a frame, await its answer, wait for a change; until the socket is lost. */
  async serve() {
    while (!this.ended) {
      const begun = performance.now();
      const changes = source.state.version - this.version;
      if (this.version >= 0 && changes > 1) live.set({ dropped: live.state.dropped + changes - 1 });
      this.version = source.state.version;
      this.settings = settings.state;
      const { quality, share } = GRADES[live.state.grade];
      const side = Math.max(128, Math.round((settings.state.side * share) / 8) * 8);
      const { blob, dataUri } = await encoded({ side, quality });
      const given = { ...values(), num_images: 1 };
      const id = String(++this.sent);
      const told = await this.answer(JSON.stringify({ ...given, image_url: dataUri, sync_mode: true, request_id: id }), id);
      if (this.ended) return;
      if (told) await this.painted(told, performance.now() - begun, { values: given, side, input: blob });
      if (!this.changed()) await new Promise((resolve) => (this.wake = () => resolve(undefined)));
    }
  }

  changed() {
    return this.ended || source.state.version !== this.version || settings.state !== this.settings;
  }

  /**
   * The answer to a frame; null for one that the server refuses, whose words are shown.
   * @param {string} frame
   * @param {string} id
   */
  answer(frame, id) {
    const socket = /** @type {WebSocket} */ (this.socket);
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => socket.close(), ANSWER_S * 1000);
      const lost = () => reject(new Lost("The connection is lost"));
      socket.onerror = lost;
      socket.onclose = () => {
        clearTimeout(late);
        lost();
      };
      socket.onmessage = ({ data }) => {
        const told = JSON.parse(data);
        if (told.status === "error") {
          clearTimeout(late);
          reject(keyWanted());
        } else if (told.request_id === id || told.type === "x-fal-error") {
          clearTimeout(late);
          resolve(told.type === "x-fal-error" ? this.refused(told) : told);
        }
      };
      if (this.unauthorized) reject(keyWanted());
      else if (socket.readyState === WebSocket.OPEN) socket.send(frame);
      else lost();
    });
  }

  /** @param {any} told */
  refused(told) {
    wrong.set(fieldsOf(told.detail));
    sayWrong(wordsOf(told, 0));
    return null;
  }

  /**
   * @param {any} told
   * @param {number} roundTrip
   * @param {{values: import("../settings.js").Values, side: number, input: Blob}} asked
   */
  async painted(told, roundTrip, asked) {
    this.failures = 0;
    if (work.state.wrong) say("Live");
    noneWrong();
    void show(resultOf(told, { ...asked, roundTrip, live: true }));
    const now = performance.now();
    this.times = [...this.times.filter((time) => now - time < 2000), now];
    const span = now - this.times[0];
    live.set({
      rate: span > 0 ? ((this.times.length - 1) * 1000) / span : 0,
      roundTrip: live.state.roundTrip ? live.state.roundTrip * 0.8 + roundTrip * 0.2 : roundTrip,
    });
    this.grade(roundTrip, told.timings);
  }

  /**
   * Step the quality down or up, by how much of the round trip the server did not account for.
   * @param {number} roundTrip
   * @param {Record<string, number>} timings
   */
  grade(roundTrip, timings) {
    const network = roundTrip - ((timings.inference ?? 0) + (timings.queue ?? 0)) * 1000;
    if (++this.sinceGrade < GRADE_FRAMES) return;
    const { grade } = live.state;
    const slow = network > SLOW_MS && network > roundTrip * SLOW_SHARE;
    if (slow && grade < GRADES.length - 1) live.set({ grade: grade + 1 });
    else if (!slow && grade > 0 && network < SLOW_MS / 3) live.set({ grade: grade - 1 });
    else return;
    this.sinceGrade = 0;
  }
}

function keyWanted() {
  access.set({ wanted: true });
  return new Refusal("This server wants an API key", { status: 401 });
}

/** The socket is gone, or could not be had; another may be. */
class Lost extends Error {}
