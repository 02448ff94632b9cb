/**
 * What the page says. A fault's words are what has happened, a colon, and what would do; docs/troubleshooting.md has each
 * by what comes before the colon, and a test compares them. Each is one line, so that the test can read it.
 */

const BUTTON = { camera: "Camera", screen: "Screen" };

/** @typedef {keyof typeof BUTTON} Media */

/** Faults, hindrances, and what has ended by itself. */
export const faults = {
  // The server
  unreachable: "The server is not reachable: see that it runs, and the network",
  unreachableSince: (/** @type {number} */ seconds) => `Not reachable since ${seconds} s: it is asked again every two seconds; what it has begun may still come, and what is here stays`,
  foreign: "The answer is not this server's: see what is on the way, such as a proxy",
  waitsForServer: "The server is not reachable: this goes on once it is back",
  brokeOff: "The answer broke off: ask again",
  status: (/** @type {number} */ status) => `The server answered with status ${status}: its log says why`,
  keyWanted: "This server wants an API key: write one into the field above",
  keyForm: "This server wants an API key: it is kept in this tab only",
  tooLarge: "The picture is larger than this server takes: choose a smaller “Size sent” under More",
  defunct: "The engine has stopped for good: ",
  setupFailed: "The model can't be used yet: the page goes on by itself once this is done",
  pageFailed: "The page has failed: reload it",
  noMemory: "There is no memory for a JPEG: close other tabs, or take a smaller picture",

  // Live and queue
  lost: "The connection is lost: see the server and the network",
  liveHidden: "Live has stopped while the page was hidden: press Live to go on",
  jobFailed: (/** @type {string} */ id) => `Job ${id} has failed: why is below`,
  jobGone: (/** @type {string} */ id) => `Job ${id} is gone: press Queue for a new one`,

  // Camera and screen
  insecure: (/** @type {Media} */ kind) => `The ${kind} needs https, or localhost: a browser gives it to no other page`,
  noScreens: "This browser can't share a screen: use one on a desktop",
  noCameras: "This browser has no camera for pages: choose a picture, or use another browser",
  noneChosen: "No screen was chosen: press Screen again, and choose one",
  notAllowed: (/** @type {Media} */ kind) => `The ${kind} is not allowed: allow it beside the page's address or in the system's settings, then press ${BUTTON[kind]} again`,
  notFound: (/** @type {Media} */ kind) => `There is no ${kind}: connect one, then press ${BUTTON[kind]} again`,
  inUse: "The camera is in use by another program: close that, then press Camera again",
  unread: "The screen can't be read: allow it in the system's settings, then press Screen again",
  noFrames: (/** @type {Media} */ kind, /** @type {string} */ why) => `The ${kind} gives no picture (${why}): press ${BUTTON[kind]} again`,
  ended: (/** @type {Media} */ kind) => `The ${kind} has ended: press ${BUTTON[kind]} to go on`,
  hidden: (/** @type {Media} */ kind) => `The ${kind} has stopped while the page was hidden: press ${BUTTON[kind]} to go on`,

  // Pictures from files
  tooManyPixels: (/** @type {number} */ millions, /** @type {number} */ most) => `This picture has ${millions} megapixels: up to ${most} work here`,
  heic: (/** @type {string} */ kinds) => `This browser can't read HEIC, the iPhone's own kind: send it as ${kinds}`,
  noPicture: (/** @type {string} */ kinds) => `This is no picture that the browser can read: it takes ${kinds}`,
  nothingDropped: "Nothing in that could be read: drop a file",

  // Results
  unsafe: "The safety checker found this picture unsafe and blackened it: another seed or prompt may do",
  inputLost: "What went in was not kept over the reload: Generate again to compare",
  restoredAlone: (/** @type {number} */ seed) => `Restored, seed ${seed}, without what went in: choose that again`,
  nothingKept: "This browser keeps nothing here: it is a private window, or its storage is full; save what is to stay",
  noRecorder: "This browser can't record a canvas as WebM: a current Chromium or Firefox can",
  noClipboard: "This page may not copy it: press Ctrl+C",

  // Values of a grid
  count: (/** @type {number} */ most, /** @type {string} */ such) => `These are no values, or too many: write one to ${most}, such as ${such}`,
  noNumber: (/** @type {string} */ written, /** @type {number} */ such) => `“${written}” is no number: write one such as ${such}`,
  notWhole: (/** @type {string} */ written, /** @type {string} */ name) => `${written} is no whole number: ${name} takes only those`,
  outside: (/** @type {number} */ value, /** @type {string} */ name, /** @type {number} */ low, /** @type {number} */ high) => `${value} is out of range: ${name} goes from ${low} to ${high}`,

  // Code, API, trust
  takeover: "fal's names must lead here: `fourstep hosts` prints the lines for this machine's hosts file",
  httpsOnly: (/** @type {string} */ options) => `fal's Python client speaks https only: start the server with \`${options}\``,
  otherName: (/** @type {string} */ options) => `The server's certificate is not for this name: start it with \`${options}\` too`,
  noSocket: "The socket could not be opened: see the server's log, and whether a proxy lets sockets pass",
  noHttps: "This server speaks no https: start it with this too, and open this page again",
  otherHost: (/** @type {string} */ host) => `Its certificate is not for ${host}: start it with this too, and open this page again`,
  trusted: "This page came by https: whatever opened it without a warning trusts this server already",
};

/** How far something is: nothing to be done about it. */
export const news = {
  waiting: "Waiting for the server …",
  again: (/** @type {string} */ why, /** @type {number} */ seconds) => `${why}; again in ${seconds} s`,
  step: (/** @type {number} */ step, /** @type {number} */ steps) => `Step ${step} of ${steps}`,
  made: (/** @type {number} */ ms, /** @type {number} */ seed) => `${ms} ms, seed ${seed}`,
  blackened: (/** @type {number} */ ms, /** @type {number} */ seed) => `${ms} ms, seed ${seed}, blackened by the safety checker`,
  picture: (/** @type {number} */ ms) => `A new picture, ${ms} ms`,
  cancelled: "Cancelled",
  connecting: "Connecting …",
  live: "Live",
  off: "Live is off",
  queued: "In the queue",
  jobWaits: (/** @type {string} */ id) => `Job ${id} waits`,
  jobRuns: (/** @type {string} */ id) => `Job ${id} is being made`,
  jobDone: (/** @type {string} */ id) => `Job ${id} is done`,
  cell: (/** @type {number} */ index, /** @type {number} */ all) => `${index} of ${all}`,
  grid: (/** @type {number} */ all) => `The grid of ${all} is done`,
  gridHint: (/** @type {number} */ most) => `The same picture and seed in each cell, up to ${most} by ${most}.`,
  restored: (/** @type {number} */ seed) => `Restored, seed ${seed}`,
  recording: "Recording what comes out",
  recorded: "The recording is saved",
  copied: "Link copied: the settings are in it, the picture is not",
  kept: (/** @type {number} */ most) => `The last ${most} stay here, in this browser only.`,
};
