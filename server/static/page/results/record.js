/** Record: a film of the pictures that come out, as WebM. */

import { canvas } from "../output.js";
import { Store } from "../store.js";
import { faults, news } from "../words.js";
import { say } from "../work.js";
import { saveFile, timed } from "./save.js";

const TYPE = ["video/webm;codecs=vp8", "video/webm"].find((type) => globalThis.MediaRecorder?.isTypeSupported(type));
const BITS_PER_SECOND = 8_000_000;
// A recording lies in memory, a megabyte a second.
const LONGEST_MS = 600_000;
const REPAINT_MS = 100;

/** Why nothing can be recorded here; "" where it can. */
export const hindrance = TYPE && "captureStream" in canvas ? "" : faults.noRecorder;

/** @type {Store<{on: boolean}>} */
export const recording = new Store({ on: false });

/** @type {MediaRecorder | null} */
let recorder = null;

export function toggleRecord() {
  if (recorder) recorder.stop();
  else start();
}

function start() {
  const stream = canvas.captureStream();
  const film = (recorder = new MediaRecorder(stream, { mimeType: TYPE, videoBitsPerSecond: BITS_PER_SECOND }));
  /** @type {Blob[]} */
  const pieces = [];
  // A canvas that nobody paints makes no frames, and a still picture is to last as long as it was seen.
  const repaint = setInterval(() => canvas.getContext("2d")?.drawImage(canvas, 0, 0), REPAINT_MS);
  const late = setTimeout(() => film.stop(), LONGEST_MS);
  film.ondataavailable = ({ data }) => pieces.push(data);
  film.onstop = () => {
    clearInterval(repaint);
    clearTimeout(late);
    for (const track of stream.getTracks()) track.stop();
    recorder = null;
    recording.set({ on: false });
    saveFile(new Blob(pieces, { type: "video/webm" }), timed(".webm"));
    say(news.recorded);
  };
  film.start(1000);
  recording.set({ on: true });
  say(news.recording);
}
