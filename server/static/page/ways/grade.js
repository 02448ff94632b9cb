/** How good a picture live sends: less where the network is the slow part. */

// From what looks best to what a slow network carries: JPEG quality, and the share of the chosen side.
const GRADES = [
  { quality: 0.92, share: 1 },
  { quality: 0.8, share: 1 },
  { quality: 0.65, share: 0.75 },
  { quality: 0.5, share: 0.5 },
];
// The network is the slow part when it takes this share of a round trip, and more than this many milliseconds.
const SLOW_SHARE = 0.6;
const SLOW_MS = 60;
// Frames after which the grade may change again.
const GRADE_FRAMES = 12;
const MIN_SIDE = 128;

export class Grade {
  constructor() {
    this.at = 0;
    this.frames = 0;
  }

  /** What is sent of a picture. @param {number} chosen the side that the settings have */
  of(chosen) {
    const { quality, share } = GRADES[this.at];
    return { quality, side: Math.max(MIN_SIDE, Math.round((chosen * share) / 8) * 8) };
  }

  /**
   * Step down or up, by how much of the round trip the server did not account for.
   * @param {number} roundTrip milliseconds
   * @param {Record<string, number>} timings seconds
   */
  heard(roundTrip, timings) {
    const network = roundTrip - ((timings.inference ?? 0) + (timings.queue ?? 0)) * 1000;
    if (++this.frames < GRADE_FRAMES) return;
    const slow = network > SLOW_MS && network > roundTrip * SLOW_SHARE;
    if (slow && this.at < GRADES.length - 1) this.at += 1;
    else if (!slow && this.at > 0 && network < SLOW_MS / 3) this.at -= 1;
    else return;
    this.frames = 0;
  }
}
