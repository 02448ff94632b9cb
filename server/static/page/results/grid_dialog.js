/** The dialog of the grid: which settings, which values, the sheet as it fills. */

import { useEffect, useRef, useState } from "preact/hooks";

import { html } from "../html.js";
import { onKey } from "../shortcuts.js";
import { useStore } from "../store.js";
import { news } from "../words.js";
import { work } from "../work.js";
import { AXES, MOST, cancelGrid, canvas, grid, makeGrid, valuesIn } from "./grid.js";
import { saveFile, timed } from "./save.js";

/** @typedef {import("./grid.js").Name} Name */
/** @typedef {{name: Name | "", text: string, wrong: string}} Field */

const NAMES = /** @type {Name[]} */ (Object.keys(AXES));

/** @param {Name | ""} name @returns {Field} */
const fresh = (name) => ({ name, text: name && AXES[name].proposed().join(", "), wrong: "" });

onKey("g", "Grid of two settings", () => grid.set({ open: true }));

export function GridDialog() {
  const { open } = useStore(grid, (state) => state);
  return open && html`<${Dialog} />`;
}

function Dialog() {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const sheet = useRef(/** @type {HTMLElement | null} */ (null));
  const [across, setAcross] = useState(() => fresh("strength"));
  const [down, setDown] = useState(() => fresh("num_inference_steps"));
  const { done, all } = useStore(grid, (state) => state);
  const { busy, said, wrong } = useStore(work, (state) => state);
  const runs = busy === "grid";
  useEffect(() => {
    dialog.current?.showModal();
    sheet.current?.append(canvas);
  }, []);

  const make = (/** @type {Event} */ event) => {
    event.preventDefault();
    const [first, second] = [read(across), read(down)];
    setAcross({ ...across, wrong: first.wrong });
    setDown({ ...down, wrong: second.wrong });
    if (first.axis && !second.wrong) void makeGrid(first.axis, second.axis);
  };
  const end = () => {
    cancelGrid();
    grid.set({ open: false });
  };
  // Esc ends the run first, and closes what is left then.
  const escape = (/** @type {Event} */ event) => {
    if (!runs) return;
    event.preventDefault();
    cancelGrid();
  };
  const save = () => canvas.toBlob((blob) => blob && saveFile(blob, timed("-grid.png")));

  return html`
    <dialog ref=${dialog} class="grid" aria-labelledby="grid-title" onClose=${end} onCancel=${escape}>
      <h2 id="grid-title">Grid</h2>
      <form onSubmit=${make}>
        <${Values} id="across" label="Across" field=${across} set=${setAcross} other=${down.name} disabled=${runs} />
        <${Values} id="down" label="Down" field=${down} set=${setDown} other=${across.name} disabled=${runs} optional />
        <div class="bar">
          <button class="main" type=${runs ? "button" : "submit"} disabled=${!runs && busy !== "" && busy !== "live"}
            onClick=${runs && cancelGrid}>${runs ? "Cancel" : "Make the grid"}</button>
          <button type="button" disabled=${runs || done === 0} onClick=${save}>Save as PNG</button>
          <button type="button" onClick=${() => dialog.current?.close()}>Close</button>
        </div>
      </form>
      ${runs && html`<progress value=${done} max=${all} aria-label="Pictures of the grid"></progress>`}
      <p role="status" class=${wrong ? "said wrong" : "said"}>${all > 0 || wrong ? said : news.gridHint(MOST)}</p>
      <div ref=${sheet} hidden=${all === 0} role="img" aria-label=${`Grid, ${done} of ${all} pictures`}></div>
    </dialog>
  `;
}

/** @param {Field} field @returns {{axis: import("./grid.js").Axis | null, wrong: string}} */
function read({ name, text }) {
  if (!name) return { axis: null, wrong: "" };
  try {
    return { axis: { name, values: valuesIn(name, text) }, wrong: "" };
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return { axis: null, wrong: error.message };
  }
}

/**
 * A setting and its values.
 * @param {{id: string, label: string, field: Field, set: (field: Field) => void, other: string, disabled: boolean, optional?: boolean}} props
 */
function Values({ id, label, field, set, other, disabled, optional }) {
  const choose = (/** @type {any} */ { target }) => set(fresh(target.value));
  const write = (/** @type {any} */ { target }) => set({ ...field, text: target.value });
  return html`
    <fieldset disabled=${disabled}>
      <legend>${label}</legend>
      <select aria-label=${`${label}: setting`} value=${field.name} onChange=${choose}>
        ${optional && html`<option value="">nothing</option>`}
        ${NAMES.filter((name) => name !== other).map((name) => html`<option key=${name} value=${name}>${AXES[name].label}</option>`)}
      </select>
      ${field.name && html`<input aria-label=${`${label}: values`} value=${field.text} inputmode="text" autocomplete="off"
        aria-invalid=${field.wrong !== ""} aria-describedby=${`${id}-wrong`} onInput=${write} />`}
      <p class="wrong" id=${`${id}-wrong`}>${field.wrong}</p>
    </fieldset>
  `;
}
