/** Pictures from files: decoded apart from the page's thread, turned as their camera was held, large ones reduced. */

import { faults } from "../words.js";

// The server's longest side: more would be sent for nothing.
const MAX_SIDE = 1024;
// What a browser can decode without failing on a phone: four bytes each.
const MAX_PIXELS = 120e6;
const KINDS = "JPEG, PNG, WebP, AVIF, GIF or BMP";

/** Why a file is no picture here, in words for the page. */
export class Unreadable extends Error {}

/**
 * The picture in a file, its longest side at most 1024 pixels. Raises `Unreadable`.
 * @param {Blob} file
 * @returns {Promise<ImageBitmap>}
 */
export async function read(file) {
  try {
    const { width, height } = await sizeOf(file);
    if (width * height > MAX_PIXELS) {
      throw new Unreadable(faults.tooManyPixels(Math.round((width * height) / 1e6), MAX_PIXELS / 1e6));
    }
    const share = MAX_SIDE / Math.max(width, height);
    if (share >= 1) return await createImageBitmap(file);
    const [resizeWidth, resizeHeight] = [width, height].map((each) => Math.max(1, Math.round(each * share)));
    return await createImageBitmap(file, { resizeWidth, resizeHeight, resizeQuality: "high" });
  } catch (error) {
    throw error instanceof Unreadable ? error : new Unreadable(await reason(file));
  }
}

/** Width and height in pixels, read from the header alone. @param {Blob} file @returns {Promise<{width: number, height: number}>} */
async function sizeOf(file) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await new Promise((resolve, reject) => Object.assign(image, { onload: resolve, onerror: reject }));
    return { width: image.naturalWidth, height: image.naturalHeight };
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

/** @param {Blob} file */
async function reason(file) {
  const head = await file.slice(0, 12).text().catch(() => "");
  return /^....ftyp(hei|hev|mif1|msf1)/s.test(head) ? faults.heic(KINDS) : faults.noPicture(KINDS);
}
