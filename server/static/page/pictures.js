/** Both pictures with what stands around them, and the strip of results: what the page shows once its form can be used. */

import { html } from "./html.js";
import { Actions } from "./results/actions.js";
import { readKept } from "./results/kept.js";
import { OutSquare } from "./results/square.js";
import { SourceBar } from "./sources/bar.js";
import { InSquare } from "./sources/square.js";
import { Stages } from "./stages.js";

export { Strip } from "./results/strip.js";

export const In = () => html`<${SourceBar} /><${InSquare} />`;
export const Out = () => html`<${Actions} /><${OutSquare} /><${Stages} />`;

void readKept();
