/** Icons, as inline SVG of one stroke; they are decoration: a button has its name in text or `aria-label`. */

import { html } from "./html.js";

/** @type {Record<string, string>} */
const PATHS = {
  draw: "M4 20l4-1 11-11-3-3L5 16zM14 7l3 3",
  camera: "M3 7h4l2-2h6l2 2h4v12H3zM12 17a4 4 0 100-8 4 4 0 000 8z",
  screen: "M3 5h18v11H3zM8 20h8M12 16v4",
  picture: "M3 5h18v14H3zM3 16l5-5 4 4 3-3 6 6M15.5 9.5h.01",
  compare: "M12 3v18M4 6h5v12H4zM15 6h5v12h-5z",
  grid: "M4 4h6v6H4zM14 4h6v6h-6zM4 14h6v6H4zM14 14h6v6h-6z",
  record: "M12 18a6 6 0 100-12 6 6 0 000 12z",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14",
  reuse: "M9 14l-5-5 5-5M4 9h10a6 6 0 016 6v5",
  lock: "M6 11h12v9H6zM9 11V7a3 3 0 016 0v4",
  unlock: "M6 11h12v9H6zM9 11V7a3 3 0 015.8-1",
  dice: "M4 4h16v16H4zM8.5 8.5h.01M15.5 15.5h.01M15.5 8.5h.01M8.5 15.5h.01M12 12h.01",
  code: "M8 7l-5 5 5 5M16 7l5 5-5 5M14 4l-4 16",
  close: "M5 5l14 14M19 5L5 19",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  live: "M13 3L5 14h6l-1 7 8-11h-6z",
  play: "M7 4l13 8-13 8z",
  stop: "M6 6h12v12H6z",
  undo: "M9 14l-5-5 5-5M4 9h11a5 5 0 010 10h-4",
  redo: "M15 14l5-5-5-5M20 9H9a5 5 0 000 10h4",
  brush: "M4 20c4 0 5-2 5-4l9-11 2 2-9 10c-2 0-4 1-7 3z",
  eraser: "M5 15l9-10 6 6-8 9H8zM9 11l6 6",
  fill: "M4 12l8-8 8 8-8 8zM4 12h16M20 16c1 1.5 1 3 0 4-1-1-1-2.500 0-4z",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
  mirror: "M12 3v18M9 7l-5 10h5zM15 7l5 10h-5z",
  share: "M12 3v12M8 7l4-4 4 4M5 12v8h14v-8",
  queue: "M4 6h16M4 12h16M4 18h10",
};

/** @param {{name: string}} props */
export const Icon = ({ name }) => html`
  <svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false"><path d=${PATHS[name]} /></svg>
`;
