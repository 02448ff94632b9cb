/** The controls on the right: what the model is told beside the picture and the prompt. */

import { html } from "./html.js";
import { Icon } from "./icons.js";
import { SIDES, dice, limits, settings, wrong } from "./settings.js";
import { useStore } from "./store.js";

export function Controls() {
  const { seed, seedLocked, side, negative_prompt: negative, enable_safety_checks: safety } = useStore(settings, (state) => state);
  const lock = () => settings.set({ seedLocked: !seedLocked });
  return html`
    <section class="controls" aria-label="Settings">
      <${Slider} name="strength" label="Strength" step=${0.05} />
      <${Slider} name="num_inference_steps" label="Steps" step=${1} />
      <${Slider} name="guidance_scale" label="Guidance" step=${0.5} />
      <div class="field">
        <label for="seed">Seed</label>
        <div class="bar">
          <input id="seed" type="number" value=${seed} aria-describedby="seed-wrong"
            onChange=${(/** @type {any} */ { target }) => settings.set({ seed: Number(target.value) || 0, seedLocked: true })} />
          <button type="button" class="square-button" aria-pressed=${seedLocked} aria-label="Keep this seed" onClick=${lock}>
            <${Icon} name=${seedLocked ? "lock" : "unlock"} /></button>
          <button type="button" class="square-button" aria-label="Another seed" onClick=${() => settings.set({ seed: dice() })}>
            <${Icon} name="dice" /></button>
        </div>
        <${Wrong} name="seed" />
      </div>
      <details>
        <summary>More</summary>
        <div class="field">
          <label for="negative_prompt">Negative prompt <small>counts when guidance is above 1</small></label>
          <input id="negative_prompt" value=${negative} aria-describedby="negative_prompt-wrong"
            onInput=${(/** @type {any} */ { target }) => settings.set({ negative_prompt: target.value })} />
          <${Wrong} name="negative_prompt" />
        </div>
        <${Slider} name="num_images" label="Number of pictures" step=${1} />
        <label class="check"><input type="checkbox" checked=${safety}
          onChange=${(/** @type {any} */ { target }) => settings.set({ enable_safety_checks: target.checked })} />
          Safety checker</label>
        <div class="field">
          <label for="side">Size sent <small>longest side, in pixels</small></label>
          <select id="side" value=${side} onChange=${(/** @type {any} */ { target }) => settings.set({ side: Number(target.value) })}>
            ${SIDES.map((each) => html`<option key=${each} value=${each}>${each}</option>`)}
          </select>
        </div>
      </details>
    </section>
  `;
}

/**
 * A range and a number for one field, within the limits of the server's own document.
 * @param {{name: "strength" | "num_inference_steps" | "guidance_scale" | "num_images", label: string, step: number}} props
 */
function Slider({ name, label, step }) {
  const value = useStore(settings, (state) => state[name]);
  const limit = useStore(limits, (state) => state[name]);
  const fault = useStore(wrong, (state) => state[name]);
  const change = (/** @type {any} */ { target }) => {
    if (target.value !== "" && Number.isFinite(Number(target.value))) settings.set({ [name]: Number(target.value) });
  };
  const shared = { min: limit?.minimum, max: limit?.maximum, step, value, onInput: change };
  return html`
    <div class="field">
      <label for=${name} title=${limit?.description}>${label}</label>
      <div class="bar">
        <input type="range" ...${shared} aria-label=${label} />
        <input type="number" id=${name} ...${shared} step="any" aria-invalid=${Boolean(fault)} aria-describedby=${`${name}-wrong`} />
      </div>
      <${Wrong} name=${name} />
    </div>
  `;
}

/** The server's words on a field that it has refused. @param {{name: string}} props */
function Wrong({ name }) {
  const words = useStore(wrong, (state) => state[name]);
  return html`<p class="wrong" id=${`${name}-wrong`}>${words}</p>`;
}
