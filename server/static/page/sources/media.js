/** Camera and screen: each frame is painted on the input, until another source is chosen or the page is hidden. */

import { settings } from "../settings.js";
import { Store } from "../store.js";
import { faults } from "../words.js";
import { canvas, choice, sheets, source, touched, turnTo } from "./source.js";
import { context } from "./sheet.js";

/** @typedef {import("../words.js").Media} Media */

// A frame for the eye, thirty of sixty a second; what is sent is the newest all the same.
const SHOWN_EVERY_MS = 25;

/**
 * `running`: whose light is on; `cameras`: those to choose from, `camera`: the id of the chosen one.
 * @type {Store<{running: Media | null, mirror: boolean, cameras: MediaDeviceInfo[], camera: string}>}
 */
export const media = new Store({ running: null, mirror: true, cameras: [], camera: "" });

/** @type {MediaStream | null} */
let stream = null;

/** Start the camera or the screen, or stop it where it runs: its last frame stays, to draw on. @param {Media} kind */
export function toggle(kind) {
  if (media.state.running === kind) stop();
  else void start(kind);
}

/** @param {string} camera the id of a device */
export function useCamera(camera) {
  stop(); // some systems open one camera at a time
  media.set({ camera });
  void start("camera");
}

/** @param {Media} kind */
async function start(kind) {
  const isNewest = choice();
  /** @type {MediaStream | null} */
  let given = null;
  try {
    const opened = (given = await (kind === "camera" ? openCamera() : openScreen()));
    if (!isNewest()) return end(opened);
    const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, srcObject: opened });
    await video.play();
    if (!isNewest()) return end(opened);
    stop();
    stream = opened;
    opened.getVideoTracks()[0].onended = () => ended(opened, faults.ended(kind));
    paint(kind, video);
    turnTo(kind);
    media.set({ running: kind });
    follow(kind, video, opened);
    if (kind === "camera") void listCameras();
  } catch (error) {
    end(given);
    if (isNewest()) source.set(reason(kind, /** @type {Error} */ (error)));
  }
}

async function openCamera() {
  const { camera } = media.state;
  const video = { deviceId: camera || undefined, ...asSent() };
  const given = await navigator.mediaDevices.getUserMedia({ video });
  const { facingMode, deviceId = "" } = given.getVideoTracks()[0].getSettings();
  // Who sees themselves expects a mirror; who sees the room does not.
  media.set({ mirror: facingMode !== "environment", camera: deviceId });
  return given;
}

/** A square as large as what is sent: a browser that can cuts and scales it before the page has it. */
function asSent() {
  const ideal = settings.state.side;
  return { width: { ideal }, height: { ideal } };
}

settings.subscribe(({ side }, before) => {
  if (side !== before.side && media.state.running === "camera") void stream?.getVideoTracks()[0].applyConstraints(asSent());
});

function openScreen() {
  const { CaptureController: Controller } = /** @type {any} */ (window);
  const controller = Controller && new Controller();
  // A browser brings a shared tab to the front: the page would be hidden, and stop at once.
  controller?.setFocusBehavior?.("no-focus-change");
  return navigator.mediaDevices.getDisplayMedia(/** @type {any} */ ({ video: { frameRate: 30 }, controller }));
}

async function listCameras() {
  const devices = await navigator.mediaDevices.enumerateDevices();
  media.set({ cameras: devices.filter(({ kind, deviceId }) => kind === "videoinput" && deviceId) });
}
navigator.mediaDevices?.addEventListener("devicechange", () => void listCameras());

/**
 * Paint the frames until the stream is another one: for the eye, and whichever is the newest when a picture is taken.
 * @param {Media} kind
 * @param {HTMLVideoElement} video
 * @param {MediaStream} of
 */
function follow(kind, video, of) {
  const sheet = sheets[kind];
  let shown = 0;
  const show = () => {
    sheet.behind = null;
    shown = performance.now();
    paint(kind, video);
    sheet.paint(canvas);
  };
  const next = () => {
    if (stream !== of) return;
    if (performance.now() - shown < SHOWN_EVERY_MS) sheet.behind = show;
    else show();
    touched();
    wait();
  };
  const wait = () => (video.requestVideoFrameCallback ? video.requestVideoFrameCallback(next) : requestAnimationFrame(next));
  wait();
}

/**
 * Put a frame on its sheet, no larger than what is sent: the camera's middle square, the screen at its own shape.
 * @param {Media} kind
 * @param {HTMLVideoElement} video
 */
function paint(kind, video) {
  const { videoWidth: width, videoHeight: height } = video;
  const short = Math.min(width, height);
  const [wide, high] = kind === "camera" ? [short, short] : [width, height];
  const share = Math.min(1, settings.state.side / Math.max(wide, high));
  const [across, down] = [wide, high].map((each) => Math.round(each * share));
  const { base } = sheets[kind];
  if (base.width !== across || base.height !== down) Object.assign(base, { width: across, height: down });
  const to = context(base);
  if (kind === "camera" && media.state.mirror) to.setTransform(-1, 0, 0, 1, across, 0);
  to.drawImage(video, (width - wide) / 2, (height - high) / 2, wide, high, 0, 0, across, down);
  to.resetTransform();
}

export function stop() {
  if (media.state.running) sheets[media.state.running].behind = null;
  end(stream);
  stream = null;
  media.set({ running: null });
}

/** @param {MediaStream | null} of */
const end = (of) => of?.getTracks().forEach((track) => track.stop());

/** @param {MediaStream | null} of @param {string} said */
function ended(of, said) {
  if (!of || of !== stream) return;
  stop();
  source.set({ said, trust: false });
}

source.subscribe(({ kind }) => {
  if (media.state.running && kind !== media.state.running) stop();
});

document.addEventListener("visibilitychange", () => {
  const { running } = media.state;
  if (document.hidden && running) ended(stream, faults.hidden(running));
});

/** Why there is no picture, and what would do. @param {Media} kind @param {Error} error */
function reason(kind, { name, message }) {
  if (!isSecureContext) return { said: faults.insecure(kind), trust: true };
  const screen = kind === "screen";
  /** @type {Record<string, string>} */
  const words = {
    TypeError: screen ? faults.noScreens : faults.noCameras,
    NotAllowedError: screen && !/system/i.test(message) ? faults.noneChosen : faults.notAllowed(kind),
    NotFoundError: faults.notFound(kind),
    NotReadableError: screen ? faults.unread : faults.inUse,
  };
  return { said: words[name] ?? faults.noFrames(kind, message || name), trust: false };
}
