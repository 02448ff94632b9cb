/** Files for the person: pictures as they came from the server, films, grids. */

import { keep } from "./kept.js";

/** @typedef {import("../output.js").Result} Result */

/** @param {Blob} blob @param {string} name */
export function saveFile(blob, name) {
  const anchor = document.createElement("a");
  anchor.href = URL.createObjectURL(blob);
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 60_000); // the browser reads it a little later
}

/** Save every picture of a result, each under its own seed; a live one is kept in the strip too. @param {Result} result */
export function savePictures(result) {
  result.pictures.forEach((picture, index) => saveFile(picture, `fourstep-${result.seed + index}.jpg`));
  void keep(result);
}

/** A file's name by the local time. @param {string} ending */
export function timed(ending) {
  // Swedish writes dates as ISO 8601 does.
  return `fourstep-${new Date().toLocaleString("sv").replace(/[ :]/g, "-")}${ending}`;
}
