/** The page: its layout, what happens when it opens, its keys. */

import { render } from "preact";

import { Ask } from "./ask.js";
import { Controls } from "./controls.js";
import { Foot } from "./foot.js";
import { html } from "./html.js";
import { Notices } from "./notices.js";
import { Actions } from "./results/actions.js";
import { readKept } from "./results/kept.js";
import { OutSquare } from "./results/square.js";
import { Strip } from "./results/strip.js";
import { watchHealth } from "./server.js";
import { dice, readLimits, settings } from "./settings.js";
import { readFragment } from "./share.js";
import { onKey } from "./shortcuts.js";
import { SourceBar } from "./sources/bar.js";
import { useExample } from "./sources/source.js";
import { InSquare } from "./sources/square.js";
import { Stages } from "./stages.js";
import { Top } from "./top.js";
import { cancel, generate } from "./ways/generate.js";
import { stopLive, toggleLive } from "./ways/live.js";
import { resume } from "./ways/queue.js";

function Page() {
  return html`
    <${Top} />
    <${Notices} />
    <main>
      <section class="in" aria-label="In"><${SourceBar} /><${InSquare} /></section>
      <section class="out" aria-label="Out"><${Actions} /><${OutSquare} /><${Stages} /></section>
      <${Ask} />
      <${Controls} />
    </main>
    <${Strip} />
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
void readKept();
resume();
void useExample();
await readLimits();
readFragment();
