/** The tools to draw with: one toolbar, one stop of the Tab key; arrows go through it. */

import { useEffect, useRef } from "preact/hooks";

import { html } from "../html.js";
import { Icon } from "../icons.js";
import { onKey } from "../shortcuts.js";
import { useStore } from "../store.js";
import { SIZES, clear, pen, redo, resize, undo, useColour } from "./pen.js";
import { sheet, source } from "./source.js";

/** @typedef {import("./pen.js").Tool} Tool */

const TOOLS = /** @type {[Tool, string][]} */ ([
  ["brush", "Brush"],
  ["eraser", "Eraser"],
  ["fill", "Fill"],
]);
const COLOURS = Object.entries({
  "#17211f": "Black",
  "#ffffff": "White",
  "#c0392b": "Red",
  "#f2a03d": "Orange",
  "#f7d65a": "Yellow",
  "#3f8f4f": "Green",
  "#2d7dc1": "Blue",
  "#7a5237": "Brown",
});

for (const [tool, words] of TOOLS) onKey(tool[0], words, () => pen.set({ tool }));
onKey("[", "Smaller brush", () => resize(1 / 1.25));
onKey("]", "Larger brush", () => resize(1.25));
onKey("Z", "Undo", undo, { control: true, shift: false });
onKey("Z", "Redo", redo, { control: true, shift: true });

export function Tools() {
  const bar = useRef(/** @type {HTMLElement | null} */ (null));
  const { tool, colour, size, open } = useStore(pen, (state) => state);
  const kind = useStore(source, (state) => state.kind);
  const [past, future] = [useStore(source, () => sheet().done.length > 0), useStore(source, () => sheet().undone.length > 0)];
  useEffect(() => pen.set({ open: kind === "draw" }), [kind]);
  useEffect(() => rove(bar.current), []);
  return html`
    <div class="tools" data-open=${open}>
      <button type="button" class="unfold" aria-expanded=${open} aria-label="Drawing tools" onClick=${() => pen.set({ open: !open })}>
        <${Icon} name=${open ? "close" : "brush"} /></button>
      <div class="bar" role="toolbar" aria-label="Drawing" ref=${bar} onFocusIn=${(/** @type {any} */ { target }) => rove(bar.current, target)}
        onKeyDown=${arrows}>
        <div>
          ${TOOLS.map(([each, words]) => html`
            <button type="button" key=${each} aria-label=${words} title=${`${words} (${each[0]})`} aria-pressed=${tool === each}
              onClick=${() => pen.set({ tool: each })}><${Icon} name=${each} /></button>`)}
        </div>
        <input type="range" aria-label="Size of the brush" ...${SIZES} value=${size}
          onInput=${(/** @type {any} */ { target }) => pen.set({ size: Number(target.value) })} />
        <div>
          <button type="button" aria-label="Undo" title="Undo (Ctrl+Z)" aria-disabled=${!past} onClick=${undo}><${Icon} name="undo" /></button>
          <button type="button" aria-label="Redo" title="Redo (Ctrl+Shift+Z)" aria-disabled=${!future} onClick=${redo}><${Icon} name="redo" /></button>
          <button type="button" aria-label="Clear the drawing" title="Clear the drawing" aria-disabled=${!past} onClick=${clear}><${Icon} name="trash" /></button>
        </div>
        <div class="colours">
          ${COLOURS.map(([each, words]) => html`
            <button type="button" key=${each} class="colour" aria-label=${words} title=${words} aria-pressed=${colour === each}
              onClick=${() => useColour(each)}><i style=${{ background: each }}></i></button>`)}
          <input type="color" aria-label="Another colour" title="Another colour" value=${colour}
            onInput=${(/** @type {any} */ { target }) => useColour(target.value)} />
        </div>
      </div>
    </div>
  `;
}

/** @param {HTMLElement | null} bar @returns {HTMLElement[]} */
const parts = (bar) => [...(bar?.querySelectorAll("button, input") ?? [])].map((each) => /** @type {HTMLElement} */ (each));

/** Let the Tab key stop at one part only. @param {HTMLElement | null} bar @param {HTMLElement} [at] */
function rove(bar, at = parts(bar)[0]) {
  for (const each of parts(bar)) each.tabIndex = each === at ? 0 : -1;
}

/** @param {KeyboardEvent & {currentTarget: HTMLElement}} event */
function arrows({ key, target, currentTarget }) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
  const all = parts(currentTarget);
  const from = all.indexOf(/** @type {HTMLElement} */ (target));
  // The arrows move the size itself: the Tab key's way out of it leads on.
  if (step && !(target instanceof HTMLInputElement && target.type === "range")) all.at((from + step) % all.length)?.focus();
}
