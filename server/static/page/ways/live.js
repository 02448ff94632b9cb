/**
 * Live: every change is painted, over one realtime socket with one frame in flight; what changes meanwhile is one next
 * frame, so that the newest wins. Where the network is the slow part, smaller and coarser JPEGs are sent.
 */

import { arrived, encoded, source } from "../sources/source.js";
import { JPEG, resultOf, show } from "../output.js";
import { APP, Refusal, access, at, back, fieldsOf, health, token, wordsOf } from "../server.js";
import { noneWrong, settings, values, wrong } from "../settings.js";
import { Store } from "../store.js";
import { faults, news } from "../words.js";
import { say, sayWrong, work } from "../work.js";
import { pause, report } from "./generate.js";
import { Grade } from "./grade.js";
import { pack, unpack } from "./msgpack.js";

// How often the figures are told: more often nobody reads them, and each time costs the page a rendering.
const TELL_MS = 250;
// How old a picture may be that was taken before its turn, beside what taking it takes, when there is a newer one.
const STALE_MS = 20;
const PAUSES_S = [0.5, 1, 2, 4, 8];
const ANSWER_S = 30;

/**
 * `dropped`: changes that no frame showed; `roundTrip`: milliseconds, smoothed.
 * @type {Store<{on: boolean, connected: boolean, rate: number, roundTrip: number, dropped: number}>}
 */
export const live = new Store({ on: false, connected: false, rate: 0, roundTrip: 0, dropped: 0 });

/** @type {Session | null} */
let session = null;

export function toggleLive() {
  live.state.on ? stopLive() : startLive();
}

export function startLive() {
  if (live.state.on || work.state.busy) return;
  live.set({ on: true, rate: 0, roundTrip: 0, dropped: 0 });
  work.set({ busy: "live", said: news.connecting, wrong: false });
  session = new Session();
  void session.run();
}

/** @param {string} [why] */
export function stopLive(why = news.off) {
  if (!live.state.on) return;
  session?.end();
  session = null;
  live.set({ on: false, connected: false });
  work.set({ busy: "" });
  say(why);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) stopLive(faults.liveHidden);
});

/** From the switch to the switch; sockets come and go. */
class Session {
  constructor() {
    this.ended = false;
    this.unauthorized = false;
    /** @type {WebSocket | null} */
    this.socket = null;
    this.failures = this.sent = 0;
    this.version = -1;
    /** @type {number[]} the times of the last answers */
    this.times = [];
    this.dropped = this.told = 0;
    // Milliseconds, smoothed: from sending to the answer, and of making a JPEG.
    this.roundTrip = this.making = 0;
    this.grade = new Grade();
    this.wake = () => {};
    const changed = () => this.wake();
    // Also where no frame is on its way, which would show that the socket is lost.
    const gone = health.subscribe(({ since }, before) => void (since !== before.since && changed()));
    this.unwatch = [source.subscribe(changed), settings.subscribe(changed), gone];
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
        sayWrong(news.again(error.message, seconds));
        await Promise.race([pause(seconds * 1000), back()]);
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
    socket.binaryType = "arraybuffer";
    this.unauthorized = false;
    // A refused key is said before any frame is sent.
    socket.onmessage = ({ data }) => (this.unauthorized ||= read(data).status === "error");
    await new Promise((resolve, reject) => {
      socket.onopen = resolve;
      socket.onerror = socket.onclose = () => reject(new Lost(faults.unreachable));
    });
    if (this.ended) return socket.close(1000);
    live.set({ connected: true });
    say(news.live);
  }

  /**
   * Send a frame, await its answer, wait for a change; until the socket is lost. The next picture is made while a frame
   * is under way, so late that it is just ready when the answer comes.
   */
  async serve() {
    /** @type {ReturnType<Session["take"]> | null} */
    let next = null;
    while (!this.ended) {
      let taken = await (next ?? this.take());
      const old = performance.now() - taken.at > 2 * this.making + STALE_MS;
      if (next && old && taken.version !== source.state.version) taken = await this.take();
      if (this.version >= 0) this.dropped += Math.max(0, taken.version - this.version - 1);
      this.version = taken.version;
      this.settings = settings.state;
      next = null;
      const soon = setTimeout(() => {
        if (this.changed()) (next = this.take()).catch(() => {}); // it is awaited above, or the session has ended
      }, this.roundTrip - 1.5 * this.making);
      const given = { ...values(), num_images: 1 };
      const id = String(++this.sent);
      const begun = performance.now();
      const asked = this.answer(pack({ ...given, image_bytes: taken.bytes, request_id: id }), id);
      const told = await asked.finally(() => clearTimeout(soon));
      if (this.ended) return;
      if (told) this.painted(told, performance.now() - begun, { values: given, side: taken.side, input: taken.blob });
      if (!next && !this.changed()) await new Promise((resolve) => (this.wake = () => resolve(undefined)));
    }
  }

  /** The picture as it is now, as JPEG. */
  async take() {
    await arrived();
    const [at, { version }] = [performance.now(), source.state];
    const how = this.grade.of(settings.state.side);
    const made = await encoded(how);
    this.making = smoothed(this.making, performance.now() - at);
    return { ...made, at, version, side: how.side };
  }

  changed() {
    return this.ended || source.state.version !== this.version || settings.state !== this.settings;
  }

  /**
   * The answer to a frame; null for one that the server refuses, whose words are shown.
   * @param {Uint8Array<ArrayBuffer>} frame
   * @param {string} id
   */
  answer(frame, id) {
    const socket = /** @type {WebSocket} */ (this.socket);
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => socket.close(), ANSWER_S * 1000);
      const lost = () => reject(new Lost(faults.lost));
      socket.onerror = lost;
      socket.onclose = () => {
        clearTimeout(late);
        lost();
      };
      socket.onmessage = ({ data }) => {
        const told = read(data);
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
  painted(told, roundTrip, asked) {
    this.failures = 0;
    if (work.state.wrong) say(news.live);
    noneWrong();
    const pictures = told.images.map((/** @type {{content: BlobPart}} */ { content }) => new Blob([content], { type: JPEG }));
    void show(resultOf(told, { ...asked, roundTrip, live: true }, pictures));
    this.roundTrip = smoothed(this.roundTrip, roundTrip);
    const now = performance.now();
    this.times = [...this.times.filter((time) => now - time < 2000), now];
    const span = now - this.times[0];
    if (now - this.told > TELL_MS) {
      this.told = now;
      const rate = span > 0 ? ((this.times.length - 1) * 1000) / span : 0;
      live.set({ rate, roundTrip: this.roundTrip, dropped: this.dropped });
    }
    this.grade.heard(roundTrip, told.timings);
  }
}

/** @param {number} mean @param {number} value */
const smoothed = (mean, value) => (mean ? mean * 0.8 + value * 0.2 : value);

/** What the server says: a text is JSON. @param {string | ArrayBuffer} data */
const read = (data) => (typeof data === "string" ? JSON.parse(data) : unpack(data));

function keyWanted() {
  access.set({ wanted: true });
  return new Refusal(faults.keyWanted, { status: 401 });
}

/** The socket is gone, or could not be had; another may be. */
class Lost extends Error {}
