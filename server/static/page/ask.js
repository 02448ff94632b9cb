/** Prompt, Live, Generate, Queue: on a phone they stick to the foot, so that the pictures stay in sight. */

import { html } from "./html.js";
import { Icon } from "./icons.js";
import { limits, settings, wrong } from "./settings.js";
import { useStore } from "./store.js";
import { cancel, generate } from "./ways/generate.js";
import { live, toggleLive } from "./ways/live.js";
import { cancelJob, forgetJob, queue, submit } from "./ways/queue.js";
import { faults, news } from "./words.js";
import { work } from "./work.js";

export function Ask() {
  const prompt = useStore(settings, (state) => state.prompt);
  const most = useStore(limits, (state) => state.prompt?.maxLength);
  const fault = useStore(wrong, (state) => state.prompt);
  const busy = useStore(work, (state) => state.busy);
  const on = useStore(live, (state) => state.on);
  return html`
    <section class="ask" aria-label="Ask">
      <label for="prompt">Prompt</label>
      <textarea id="prompt" rows="3" maxlength=${most} value=${prompt} aria-invalid=${Boolean(fault)}
        aria-describedby="prompt-wrong" onInput=${(/** @type {any} */ { target }) => settings.set({ prompt: target.value })}
        onKeyDown=${generateOnEnter}></textarea>
      <p class="wrong" id="prompt-wrong">${fault}</p>
      <div class="bar">
        <button type="button" class="live" aria-pressed=${on} disabled=${busy !== "" && busy !== "live"} onClick=${toggleLive}>
          <${Icon} name="live" /><span class="word">Live</span></button>
        ${busy === "generate"
          ? html`<button type="button" class="main" onClick=${cancel}><${Icon} name="stop" /><span class="word">Cancel</span></button>`
          : html`<button type="button" class="main" disabled=${on} onClick=${generate}><${Icon} name="play" /><span class="word">Generate</span></button>`}
        <button type="button" disabled=${on} onClick=${submit} title="A durable job: it survives this page, and the server's end">
          <${Icon} name="queue" /><span class="word">Queue</span></button>
      </div>
      <${Said} />
      <${Jobs} />
    </section>
  `;
}

/** In the prompt Enter generates, as everywhere; Shift+Enter is a new line. @param {KeyboardEvent} event */
function generateOnEnter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  void generate();
}

function Said() {
  const { said, wrong: isWrong } = useStore(work, (state) => state);
  return html`<p class=${isWrong ? "said wrong" : "said"} id="said" role="status">${said}</p>`;
}

const WORDS = /** @type {Record<string, (id: string) => string>} */ ({
  IN_QUEUE: news.jobWaits,
  IN_PROGRESS: news.jobRuns,
  COMPLETED: news.jobDone,
  FAILED: faults.jobFailed,
  GONE: faults.jobGone,
});

function Jobs() {
  const jobs = useStore(queue, (state) => state.jobs);
  if (jobs.length === 0) return null;
  return html`
    <ul class="jobs" aria-label="Jobs in the queue">
      ${jobs.map(({ id, status, position, lines }) => html`
        <li key=${id}>
          <span>${(WORDS[status] ?? news.jobWaits)(id.slice(0, 8))}${position ? `, ${position} before it` : ""}</span>
          ${status === "IN_QUEUE" || status === "IN_PROGRESS"
            ? html`<button type="button" onClick=${() => cancelJob(id)}>Cancel</button>`
            : html`<button type="button" onClick=${() => forgetJob(id)}>Forget</button>`}
          ${lines.length > 0 && html`<pre>${lines.join("\n")}</pre>`}
        </li>
      `)}
    </ul>
  `;
}
