/** The line on top: name, how the server is, the queue, the speed of live, code and API. */

import { CodeButtons } from "./code/buttons.js";
import { html } from "./html.js";
import { health } from "./server.js";
import { useStore } from "./store.js";
import { live } from "./ways/live.js";
import { queue } from "./ways/queue.js";

export function Top() {
  return html`
    <header class="top">
      <h1>fourstep</h1>
      <${StateChip} />
      <${QueueChip} />
      <${LiveChip} />
      <div class="end"><${CodeButtons} /></div>
    </header>
  `;
}

function StateChip() {
  const now = useStore(health, (state) => state);
  const state = now.since ? "GONE" : now.state;
  const { model, device } = now.engines[0] ?? {};
  const words = now.since ? "not reachable" : now.detail || [model, device].filter(Boolean).join(" · ");
  return html`
    <p class="chip state" data-state=${state} role="status" title=${words}>
      <i class="dot"></i><b>${state}</b>${words && html`<span>${words}</span>`}
    </p>
  `;
}

function QueueChip() {
  const waiting = useStore(health, (state) => state.queue.waiting + state.queue.running);
  const mine = useStore(queue, (state) => state.jobs.find((job) => job.position !== null)?.position ?? null);
  const words = mine === null ? `${waiting} in the queue` : `${waiting} in the queue, ${mine} before yours`;
  return html`<p class="chip queue">${words}</p>`;
}

function LiveChip() {
  const now = useStore(live, (state) => state);
  if (!now.on) return null;
  return html`
    <p class="chip speed">
      <span>${now.rate.toFixed(0)} frames/s</span><span>${Math.round(now.roundTrip)} ms</span>
      ${now.dropped > 0 && html`<span>${now.dropped} dropped</span>`}
    </p>
  `;
}
