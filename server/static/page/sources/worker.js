/** A worker that makes JPEGs of pictures, so that the page's own thread stays free. */

const scope = /** @type {any} */ (self);

scope.onmessage = async (/** @type {MessageEvent} */ { data: { bitmap, crop, width, height, quality } }) => {
  const canvas = new OffscreenCanvas(width, height);
  const to = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
  to.imageSmoothingQuality = "high";
  to.drawImage(bitmap, crop[0], crop[1], crop[2], crop[3], 0, 0, width, height);
  bitmap.close();
  const blob = await canvas.convertToBlob({ type: "image/jpeg", quality });
  const bytes = new Uint8Array(await blob.arrayBuffer());
  scope.postMessage({ blob, bytes }, [bytes.buffer]);
};
