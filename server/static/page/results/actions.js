/** The row of actions above the picture that came out. */

import { useEffect, useRef, useState } from "preact/hooks";

import { html } from "../html.js";
import { Icon } from "../icons.js";
import { output } from "../output.js";
import { link } from "../share.js";
import { usePicture } from "../sources/source.js";
import { useStore } from "../store.js";
import { faults, news } from "../words.js";
import { say } from "../work.js";
import { compare, toggleCompare } from "./compare.js";
import { GridDialog } from "./grid_dialog.js";
import { grid } from "./grid.js";
import { hindrance, recording, toggleRecord } from "./record.js";
import { savePictures } from "./save.js";

export function Actions() {
  const [any, input] = [useStore(output, ({ result }) => result !== null), useStore(output, ({ result }) => Boolean(result?.input))];
  const mode = useStore(compare, (state) => state.mode);
  const films = useStore(recording, (state) => state.on);
  const [shared, setShared] = useState("");
  const share = async () => {
    try {
      await navigator.clipboard.writeText(link());
      say(news.copied);
    } catch {
      setShared(link()); // an insecure page has no clipboard, and a person may refuse it
    }
  };
  return html`
    <div class="bar" role="group" aria-label="Result">
      <${Action} icon="compare" word="Compare" pressed=${mode !== ""} disabled=${!input} onClick=${toggleCompare}
        title=${any && !input ? faults.inputLost : "What went in beside what came out"} />
      <${Action} icon="grid" word="Grid" title="Two settings against each other, in one picture" onClick=${() => grid.set({ open: true })} />
      <${Action} icon=${films ? "stop" : "record"} word=${films ? "Stop" : "Record"} pressed=${films} disabled=${hindrance !== ""}
        title=${hindrance || "A film of what comes out"} onClick=${toggleRecord} />
      <${Action} icon="save" word="Save" title="The JPEG, as the server made it" disabled=${!any}
        onClick=${() => output.state.result && savePictures(output.state.result)} />
      <${Action} icon="reuse" word="Use as input" title="This picture goes in next" disabled=${!any}
        onClick=${() => output.state.result && usePicture(output.state.result.pictures[output.state.shown])} />
      <${Action} icon="share" word="Share" title="A link to these settings" onClick=${share} />
    </div>
    <${GridDialog} />
    ${shared && html`<${LinkDialog} text=${shared} close=${() => setShared("")} />`}
  `;
}

/** @param {{icon: string, word: string, title: string, onClick: () => void, disabled?: boolean, pressed?: boolean}} props */
const Action = ({ icon, word, pressed, ...more }) => html`
  <button type="button" aria-pressed=${pressed} ...${more}><${Icon} name=${icon} /><span class="word">${word}</span></button>
`;

/** The link to copy by hand. @param {{text: string, close: () => void}} props */
function LinkDialog({ text, close }) {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const field = useRef(/** @type {HTMLInputElement | null} */ (null));
  useEffect(() => {
    dialog.current?.showModal();
    field.current?.select();
  }, []);
  return html`
    <dialog ref=${dialog} aria-label="Share" onClose=${close}>
      <form method="dialog" class="field">
        <label for="link">The link to these settings <small>${faults.noClipboard}</small></label>
        <input id="link" ref=${field} readonly value=${text} />
        <div class="bar"><button>Close</button></div>
      </form>
    </dialog>
  `;
}
