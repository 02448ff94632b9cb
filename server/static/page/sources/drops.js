/** Pictures dropped or pasted anywhere on the page. Text stays text. */

import { faults } from "../words.js";
import { source, usePicture } from "./source.js";

/** @param {DragEvent} event */
const hasFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files") ?? false;

const root = document.documentElement;

addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  root.classList.add("dragging");
});

addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) root.classList.remove("dragging"); // it has left the window
});

addEventListener("drop", (event) => {
  root.classList.remove("dragging");
  if (!hasFiles(event)) return;
  event.preventDefault();
  const [file] = event.dataTransfer?.files ?? [];
  if (file) void usePicture(file);
  else source.set({ said: faults.nothingDropped });
});

addEventListener("paste", (event) => {
  const { files, types } = /** @type {DataTransfer} */ (event.clipboardData);
  const inText = event.target instanceof Element && event.target.matches("input, textarea");
  // Office programs put a picture beside the text that they copy.
  if (!files.length || (inText && types.includes("text/plain"))) return;
  event.preventDefault();
  void usePicture(files[0]);
});
