/** Drawing with mouse, finger or pen on whatever is on the canvas. */

import { getStroke } from "perfect-freehand";

import { Store } from "../store.js";
import { flood } from "./flood.js";
import { canvas, repaint, sheet } from "./source.js";

/** @typedef {"brush" | "eraser" | "fill"} Tool */

export const SIZES = { min: 2, max: 96 };

/**
 * `size`: of the brush, in pixels of a picture 512 wide; `open`: whether a phone shows the tools, and so draws.
 * @type {Store<{tool: Tool, colour: string, size: number, open: boolean}>}
 */
export const pen = new Store({ tool: "brush", colour: "#17211f", size: 14, open: false });

/** @type {{id: number, by: string, erases: boolean, on: import("./sheet.js").Sheet, points: number[][]} | null} */
let stroke = null;
// Once a pen has drawn, a touch is the palm of the hand that holds it.
let penSeen = false;
let asked = 0;

const narrow = matchMedia("(max-width: 56.25em)");

/** @param {PointerEvent} event */
function down(event) {
  const { pointerId: id, pointerType: by, button, buttons } = event;
  if ((button !== 0 && button !== 5) || (narrow.matches && !pen.state.open)) return;
  if (by === "pen") {
    penSeen = true;
    if (stroke?.by === "touch") drop();
  }
  if (stroke || (by === "touch" && penSeen)) return;
  if (pen.state.tool === "fill") return fill(event);
  canvas.setPointerCapture(id);
  // A pen's other end has the button 5.
  stroke = { id, by, erases: pen.state.tool === "eraser" || (buttons & 32) > 0, on: sheet(), points: [] };
  move(event);
}

/** @param {PointerEvent} event */
function move(event) {
  if (event.pointerId !== stroke?.id) return;
  const events = event.getCoalescedEvents?.() ?? [];
  for (const each of events.length ? events : [event]) stroke.points.push([...place(each), each.pressure]);
  asked ||= requestAnimationFrame(() => {
    asked = 0;
    if (!stroke) return;
    stroke.on.current = act(stroke, false);
    repaint();
  });
}

/** @param {PointerEvent} event */
function up(event) {
  if (event.pointerId !== stroke?.id) return;
  stroke.on.add(act(stroke, true));
  drop();
}

function drop() {
  if (stroke) stroke.on.current = null;
  stroke = null;
  repaint();
}

canvas.addEventListener("pointerdown", down);
canvas.addEventListener("pointermove", move);
canvas.addEventListener("pointerup", up);
canvas.addEventListener("pointercancel", (event) => event.pointerId === stroke?.id && drop());

/** Where on the picture, in its pixels: it lies in the middle of its box. @param {MouseEvent} event */
function place({ clientX, clientY }) {
  const { left, top, width, height } = canvas.getBoundingClientRect();
  const scale = Math.min(width / canvas.width, height / canvas.height);
  return [
    (clientX - left - width / 2) / scale + canvas.width / 2,
    (clientY - top - height / 2) / scale + canvas.height / 2,
  ];
}

/** @param {NonNullable<typeof stroke>} of @param {boolean} last @returns {import("./sheet.js").Act} */
function act({ by, erases, points }, last) {
  const { width, height } = canvas;
  const size = (pen.state.size * Math.max(width, height)) / 512;
  const how = { size, thinning: erases ? 0 : 0.6, smoothing: 0.5, streamline: 0.4, simulatePressure: by !== "pen", last };
  return { path: pathOf(getStroke(points, how)), colour: erases ? "" : pen.state.colour, width, height };
}

/** A smooth outline. @param {number[][]} points */
function pathOf(points) {
  const path = new Path2D();
  points.forEach(([x, y], index) => {
    const [nextX, nextY] = points[(index + 1) % points.length];
    const middle = /** @type {const} */ ([(x + nextX) / 2, (y + nextY) / 2]);
    if (index) path.quadraticCurveTo(x, y, ...middle);
    else path.moveTo(...middle);
  });
  path.closePath();
  return path;
}

/** @param {PointerEvent} event */
function fill(event) {
  const { width, height } = canvas;
  const [x, y] = place(event).map(Math.floor);
  if (x < 0 || y < 0 || x >= width || y >= height) return;
  // A copy, in memory that scripts read: what is shown stays where it is shown fastest.
  const copy = Object.assign(document.createElement("canvas"), { width, height });
  const from = /** @type {CanvasRenderingContext2D} */ (copy.getContext("2d", { willReadFrequently: true }));
  from.drawImage(canvas, 0, 0);
  const path = flood(from.getImageData(0, 0, width, height), x, y);
  sheet().add({ path, colour: pen.state.colour, width, height });
  repaint();
}

export function undo() {
  sheet().undo();
  repaint();
}

export function redo() {
  sheet().redo();
  repaint();
}

/** Take the whole drawing away; that too can be undone. */
export function clear() {
  if (sheet().clean) return;
  const { width, height } = canvas;
  const path = new Path2D();
  path.rect(0, 0, width, height);
  sheet().add({ path, colour: "", width, height });
  repaint();
}

/** Change the size by a factor. @param {number} factor */
export function resize(factor) {
  const size = Math.round(factor > 1 ? Math.ceil(pen.state.size * factor) : Math.floor(pen.state.size * factor));
  pen.set({ size: Math.min(SIZES.max, Math.max(SIZES.min, size)) });
}

/** @param {string} colour like `#0b6e69` */
export function useColour(colour) {
  pen.set({ colour, tool: pen.state.tool === "eraser" ? "brush" : pen.state.tool });
}
