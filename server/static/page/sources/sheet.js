/** A sheet: a picture and what is drawn over it, with undo and redo. */

/**
 * One act of drawing: an area, and its colour, "" where it is erased; `width` and `height`: of the canvas that it was
 * drawn on, since a source may change its size meanwhile.
 * @typedef {{path: Path2D, colour: string, width: number, height: number}} Act
 */

// How many acts can be undone.
const UNDO = 50;

export class Sheet {
  constructor() {
    this.base = canvasOf(512, 512);
    context(this.base).fillStyle = "#fff";
    context(this.base).fillRect(0, 0, 512, 512);
    /** @type {(() => void) | null} paints the newest frame of a source that moves, if that was not shown */
    this.behind = null;
    this.forget();
  }

  /** Throw the drawing away, for another picture. */
  forget() {
    /** @type {Act[]} */
    this.done = [];
    /** @type {Act[]} */
    this.undone = [];
    /** @type {Act | null} what is being drawn */
    this.current = null;
    /** @type {HTMLCanvasElement | null} acts that are too old to be undone */
    this.settled = null;
    /** @type {HTMLCanvasElement} */
    this.layer = canvasOf(1, 1);
  }

  /** Whether there is no drawing. */
  get clean() {
    return !this.done.length && !this.current && !this.settled;
  }

  /** @param {Act} act */
  add(act) {
    this.undone = [];
    this.done.push(act);
    if (this.done.length > UNDO) {
      this.settled ??= canvasOf(act.width, act.height);
      apply(context(this.settled), /** @type {Act} */ (this.done.shift()));
    }
    apply(context(this.layer), act);
  }

  undo() {
    const act = this.done.pop();
    if (!act) return;
    this.undone.push(act);
    this.redraw();
  }

  redo() {
    const act = this.undone.pop();
    if (!act) return;
    this.done.push(act);
    this.redraw();
  }

  redraw() {
    const to = context(this.layer);
    const { width, height } = this.layer;
    to.reset();
    if (this.settled) to.drawImage(this.settled, 0, 0, width, height);
    for (const act of this.done) apply(to, act);
  }

  /** Paint all of it, at the size of its picture. @param {HTMLCanvasElement} canvas */
  paint(canvas) {
    const { base, current } = this;
    const { width, height } = base;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const to = context(canvas);
    to.drawImage(base, 0, 0);
    if (this.clean) return;
    if (this.layer.width !== width || this.layer.height !== height) {
      this.layer = canvasOf(width, height);
      this.redraw();
    }
    to.drawImage(current && !current.colour ? this.withCurrent(current) : this.layer, 0, 0);
    if (current?.colour) apply(to, current);
  }

  /** The layer as an eraser leaves it that is still at work. @param {Act} act */
  withCurrent(act) {
    const { width, height } = this.layer;
    Object.assign(scratch, { width, height });
    const to = context(scratch);
    to.drawImage(this.layer, 0, 0);
    apply(to, act);
    return scratch;
  }
}

const scratch = canvasOf(1, 1);

/** @param {number} width @param {number} height */
function canvasOf(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

/** @param {HTMLCanvasElement} canvas */
export function context(canvas) {
  return /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
}

/** @param {CanvasRenderingContext2D} to @param {Act} act */
function apply(to, { path, colour, width, height }) {
  to.save();
  to.setTransform(to.canvas.width / width, 0, 0, to.canvas.height / height, 0, 0);
  to.globalCompositeOperation = colour ? "source-over" : "destination-out";
  to.fillStyle = colour || "#000";
  to.fill(path);
  to.restore();
}
