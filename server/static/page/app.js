/** The page: its layout, what happens when it opens, its keys. What can be asked comes first, the pictures next. */

import { render } from "preact";

import { Ask } from "./ask.js";
import { Controls } from "./controls.js";
import { Foot } from "./foot.js";
import { html } from "./html.js";
import { Notices } from "./notices.js";
import { watchHealth } from "./server.js";
import { dice, readLimits, settings } from "./settings.js";
import { readFragment } from "./share.js";
import { onKey } from "./shortcuts.js";
import { useExample } from "./sources/source.js";
import { Store, useStore } from "./store.js";
import { Top } from "./top.js";
import { cancel, generate } from "./ways/generate.js";
import { stopLive, toggleLive } from "./ways/live.js";
import { resume } from "./ways/queue.js";

/** @type {Store<{pictures: typeof import("./pictures.js") | null}>} */
const parts = new Store({ pictures: null });

function Page() {
  const pictures = useStore(parts, (state) => state.pictures);
  const blank = html`<div class="bar blank"></div><div class="square"></div>`;
  return html`
    <${Top} />
    <${Notices} />
    <main>
      <section class="in" aria-label="In">${pictures ? html`<${pictures.In} />` : blank}</section>
      <section class="out" aria-label="Out">${pictures ? html`<${pictures.Out} />` : blank}</section>
      <${Ask} />
      <${Controls} />
    </main>
    ${pictures && html`<${pictures.Strip} />`}
    <${Foot} />
  `;
}

onKey("Enter", "Generate", () => void generate());
onKey("l", "Live on and off", toggleLive);
onKey("s", "Another seed", () => settings.set({ seed: dice() }));
onKey("Escape", "Close and cancel", () => {
  cancel();
  stopLive();
});

render(html`<${Page} />`, document.body);
void watchHealth();
resume();
void useExample();
const pictures = import("./pictures.js").then((module) => parts.set({ pictures: module }));
await readLimits();
readFragment();
await pictures;
