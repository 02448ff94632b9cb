/** Templates: `html` makes preact's elements, without a build step and without `eval`. */

import { h } from "preact";
import htm from "htm";

export const html = htm.bind(h);
