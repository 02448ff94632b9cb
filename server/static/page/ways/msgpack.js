/** The part of MessagePack that realtime needs: pictures go and come as bytes, a quarter shorter than as base64. */

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** A map of plain values. @param {Record<string, string | number | boolean | Uint8Array>} fields */
export function pack(fields) {
  const entries = Object.entries(fields);
  const parts = [sized(0xdf, entries.length), ...entries.flatMap((entry) => entry.flatMap(packed))];
  const whole = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** @param {string | number | boolean | Uint8Array} value @returns {Uint8Array[]} */
function packed(value) {
  if (typeof value === "string") {
    const bytes = encoder.encode(value);
    return [sized(0xdb, bytes.length), bytes];
  }
  if (value instanceof Uint8Array) return [sized(0xc6, value.length), value];
  if (typeof value === "boolean") return [Uint8Array.of(value ? 0xc3 : 0xc2)];
  // What is no number is null, as in JSON.
  if (!Number.isFinite(value)) return [Uint8Array.of(0xc0)];
  const bytes = new Uint8Array(9);
  const view = new DataView(bytes.buffer);
  bytes[0] = Number.isSafeInteger(value) ? 0xd3 : 0xcb;
  if (bytes[0] === 0xd3) view.setBigInt64(1, BigInt(value));
  else view.setFloat64(1, value);
  return [bytes];
}

/** A type's byte and a length of 32 bits. @param {number} type @param {number} length */
function sized(type, length) {
  const bytes = new Uint8Array(5);
  bytes[0] = type;
  new DataView(bytes.buffer).setUint32(1, length);
  return bytes;
}

/** The value in a message; bytes are views of it. @param {ArrayBuffer} message @returns {any} */
export function unpack(message) {
  const view = new DataView(message);
  let at = 0;
  /** @param {1 | 2 | 4} bytes @returns {number} */
  const count = (bytes) => {
    const read = bytes === 1 ? view.getUint8(at) : bytes === 2 ? view.getUint16(at) : view.getUint32(at);
    at += bytes;
    return read;
  };
  const bytes = (/** @type {number} */ length) => new Uint8Array(message, (at += length) - length, length);
  const list = (/** @type {number} */ length) => Array.from({ length }, value);
  const map = (/** @type {number} */ length) => Object.fromEntries(Array.from({ length }, () => [value(), value()]));
  /** @param {number} length @param {() => number | bigint} read */
  const number = (length, read) => {
    const found = Number(read());
    at += length;
    return found;
  };
  /** @type {Record<number, () => any>} */
  const types = {
    0xc0: () => null,
    0xc2: () => false,
    0xc3: () => true,
    0xc4: () => bytes(count(1)),
    0xc5: () => bytes(count(2)),
    0xc6: () => bytes(count(4)),
    0xca: () => number(4, () => view.getFloat32(at)),
    0xcb: () => number(8, () => view.getFloat64(at)),
    0xcc: () => count(1),
    0xcd: () => count(2),
    0xce: () => count(4),
    0xcf: () => number(8, () => view.getBigUint64(at)),
    0xd0: () => number(1, () => view.getInt8(at)),
    0xd1: () => number(2, () => view.getInt16(at)),
    0xd2: () => number(4, () => view.getInt32(at)),
    0xd3: () => number(8, () => view.getBigInt64(at)),
    0xd9: () => decoder.decode(bytes(count(1))),
    0xda: () => decoder.decode(bytes(count(2))),
    0xdb: () => decoder.decode(bytes(count(4))),
    0xdc: () => list(count(2)),
    0xdd: () => list(count(4)),
    0xde: () => map(count(2)),
    0xdf: () => map(count(4)),
  };
  /** @returns {any} */
  function value() {
    const type = count(1);
    if (type < 0x80) return type;
    if (type < 0x90) return map(type & 0x0f);
    if (type < 0xa0) return list(type & 0x0f);
    if (type < 0xc0) return decoder.decode(bytes(type & 0x1f));
    if (type >= 0xe0) return type - 0x100;
    return types[type]();
  }
  return value();
}
