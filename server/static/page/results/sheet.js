/** The grid as one picture: a cell for each pair of values, the axes' names and values drawn in, a foot of two lines. */

const CELL_PX = 512;
const LONGEST_PX = 2048;
const GAP = 8;
const INK = "#17211f";
const PAPER = "#ffffff";
const EMPTY = "#efece3";

/** @typedef {{title: string, values: string[]}} Labels */

export class Sheet {
  /**
   * Draw the empty sheet.
   * @param {HTMLCanvasElement} canvas
   * @param {Labels} across
   * @param {Labels | null} down
   * @param {number} aspect of a cell: width by height
   * @param {string[]} foot lines below
   */
  constructor(canvas, across, down, aspect, foot) {
    const rows = down?.values.length ?? 1;
    this.columns = across.values.length;
    const longest = Math.min(CELL_PX, LONGEST_PX / Math.max(this.columns, rows));
    this.width = Math.round(longest * Math.min(1, aspect));
    this.height = Math.round(longest / Math.max(1, aspect));
    const size = Math.max(16, Math.round(longest / 14));
    const line = Math.round(size * 1.6);
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    const font = `${size}px system-ui, sans-serif`;
    this.context.font = font;
    const widest = Math.max(0, ...(down?.values ?? []).map((value) => this.context.measureText(value).width));
    this.left = down ? Math.ceil(line + widest) + GAP : GAP;
    this.top = 2 * line;
    canvas.width = this.left + this.columns * (this.width + GAP);
    canvas.height = this.top + rows * (this.height + GAP) + foot.length * line;

    const { context } = this;
    context.fillStyle = PAPER;
    context.fillRect(0, 0, canvas.width, canvas.height);
    Object.assign(context, { font, fillStyle: INK, textAlign: "center", textBaseline: "middle" });
    const middle = (this.left + canvas.width) / 2;
    context.fillText(across.title, middle, line / 2, canvas.width);
    across.values.forEach((value, column) => context.fillText(value, this.at(column).x + this.width / 2, line * 1.5, this.width));
    down?.values.forEach((value, row) => context.fillText(value, line + widest / 2, this.at(row * this.columns).y + this.height / 2));
    context.textAlign = "left";
    foot.forEach((words, index) => context.fillText(clipped(context, words, canvas.width - 2 * GAP), GAP, canvas.height - line * (foot.length - index - 0.5)));
    if (down) {
      context.translate(line / 2, this.top + (rows * (this.height + GAP)) / 2);
      context.rotate(-Math.PI / 2);
      context.textAlign = "center";
      context.fillText(down.title, 0, 0);
      context.resetTransform();
    }
    context.textAlign = "center";
    for (let index = 0; index < rows * this.columns; index++) this.fill(index, EMPTY);
  }

  /**
   * Put a picture into its cell, as large as it fits.
   * @param {number} index row by row
   * @param {Blob} picture
   * @param {boolean} unsafe whether the safety checker has blackened it
   */
  async put(index, picture, unsafe) {
    const bitmap = await createImageBitmap(picture);
    const share = Math.min(this.width / bitmap.width, this.height / bitmap.height);
    const { x, y } = this.at(index);
    const [width, height] = [bitmap.width * share, bitmap.height * share];
    this.fill(index, PAPER);
    this.context.drawImage(bitmap, x + (this.width - width) / 2, y + (this.height - height) / 2, width, height);
    bitmap.close();
    if (!unsafe) return;
    this.context.fillStyle = PAPER;
    this.context.fillText("blackened: unsafe", x + this.width / 2, y + this.height / 2, this.width);
  }

  /** @param {number} index @param {string} colour */
  fill(index, colour) {
    const { x, y } = this.at(index);
    this.context.fillStyle = colour;
    this.context.fillRect(x, y, this.width, this.height);
  }

  /** The corner of a cell. @param {number} index */
  at(index) {
    const row = Math.floor(index / this.columns);
    return { x: this.left + (index % this.columns) * (this.width + GAP), y: this.top + row * (this.height + GAP) };
  }
}

/** As much of the words as fits. @param {CanvasRenderingContext2D} context @param {string} words @param {number} width */
function clipped(context, words, width) {
  if (context.measureText(words).width <= width) return words;
  let end = words.length;
  while (end > 0 && context.measureText(`${words.slice(0, end)}…`).width > width) end--;
  return `${words.slice(0, end)}…`;
}
