/** Fill: the area of like colour around a point. */

// How far each of red, green and blue may be from the point's: photographs are never quite even.
const TOLERANCE = 28;

/**
 * The area around a point, one pixel wider than the like colour reaches, since lines have soft edges.
 * @param {ImageData} image
 * @param {number} x
 * @param {number} y
 */
export function flood({ data, width, height }, x, y) {
  const path = new Path2D();
  const first = (y * width + x) * 4;
  const [red, green, blue] = data.subarray(first, first + 3);
  const seen = new Uint8Array(width * height);
  const like = (/** @type {number} */ at) =>
    !seen[at] &&
    Math.abs(data[at * 4] - red) <= TOLERANCE &&
    Math.abs(data[at * 4 + 1] - green) <= TOLERANCE &&
    Math.abs(data[at * 4 + 2] - blue) <= TOLERANCE;
  const waiting = [y * width + x];
  while (waiting.length) {
    const at = /** @type {number} */ (waiting.pop());
    if (!like(at)) continue;
    const row = at - (at % width);
    let left = at;
    while (left > row && like(left - 1)) left--;
    let right = at + 1;
    while (right < row + width && like(right)) right++;
    seen.fill(1, left, right);
    path.rect(left - row - 1, row / width - 1, right - left + 2, 3);
    for (const next of [row - width, row + width]) {
      if (next < 0 || next >= width * height) continue;
      // One start for each run of like pixels above and below.
      for (let each = left - row + next, before = false; each < right - row + next; each++) {
        const now = like(each);
        if (now && !before) waiting.push(each);
        before = now;
      }
    }
  }
  return path;
}
