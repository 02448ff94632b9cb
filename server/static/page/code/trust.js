/** The page on the local CA: whether there is one, whether its certificate is for this name, its fingerprint. */

import { at, callJson } from "../server.js";
import { faults } from "../words.js";
import { LOOPBACK, isNamed, placeOf } from "./snippets.js";

const find = (/** @type {string} */ id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** @param {string} words @param {string} [command] */
function say(words, command) {
  const line = Object.assign(document.createElement("p"), { className: "notice", textContent: words });
  const shown = command ? [Object.assign(document.createElement("pre"), { tabIndex: 0, textContent: command })] : [];
  find("how").replaceChildren(line, ...shown);
}

try {
  const api = await callJson("openapi.json");
  const place = placeOf(api, at("").href, false);
  const { hostname } = new URL(place.secure || place.server);
  const names = isNamed(hostname, LOOPBACK) ? "" : ` --tls-names ${hostname.replace(/[[\]]/g, "")}`;
  const ca = api["x-local-ca"];
  if (!ca) {
    say(faults.noHttps, `--tls-port 8443${names}`);
  } else if (place.secure && !place.localCa && place.secure !== place.server) {
    say(faults.otherHost(hostname), names.trim());
  } else if (place.secure === place.server) {
    say(faults.trusted);
  }
  if (ca) {
    find("sha256").textContent = ca.sha256;
    Object.assign(find("secure"), { href: place.secure || place.server, textContent: place.secure || place.server });
    find("steps").hidden = false;
  }
} catch (error) {
  say(/** @type {Error} */ (error).message);
}
