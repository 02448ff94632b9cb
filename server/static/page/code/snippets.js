/**
 * What is on screen, as code: texts of the settings and of where the server is, without the key, which the clients take
 * from `FAL_KEY`. JavaScript gets here by `proxyUrl`, Python by its environment, curl by the address; where fal's names
 * lead here (takeover), all of them by those.
 *
 * @typedef {import("../settings.js").Values} Values
 * @typedef {{server: string, secure: string, localCa: boolean, takeover: boolean, keys: boolean}} Place
 *   URLs without slash; `secure`: of https, "" without; `localCa`: its certificate is for that name, by our own CA
 * @typedef {{language: string, call: string, way?: string, picture?: string}} Choice
 */

import { faults } from "../words.js";

/** @type {Record<string, string[]>} */
export const CALLS = {
  JavaScript: ["run", "queue", "stream", "realtime"],
  Python: ["run", "queue", "stream", "realtime"],
  curl: ["run", "queue", "stream"],
};

const APP = "fal-ai/lcm-sd15-i2i";
const SAMPLE = "https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png";
const FAL = "https://fal.run";
export const LOOPBACK = ["localhost", "127.0.0.1", "::1"];
// What the server takes where nothing is said.
/** @type {Record<string, unknown>} */
const DEFAULTS = { negative_prompt: "", guidance_scale: 1, num_images: 1, enable_safety_checks: true };

/**
 * Where the server is, by its document.
 * @param {any} document
 * @param {string} base the page's folder
 * @param {boolean} keys
 * @returns {Place}
 */
export function placeOf(document, base, keys) {
  const urls = document.servers.map((/** @type {{url: string}} */ { url }) => url);
  const secure = urls.find((/** @type {string} */ url) => url.startsWith("https:") && url !== FAL) ?? "";
  const names = document["x-local-ca"]?.names ?? [];
  const localCa = secure !== "" && isNamed(new URL(secure).hostname, names);
  return { server: base.replace(/\/$/, ""), secure, localCa, takeover: urls.includes(FAL), keys };
}

/** @param {string} host @param {string[]} names */
export const isNamed = (host, names) =>
  [host.replace(/[[\]]/g, ""), host.replace(/^[^.]*/, "*")].some((name) => names.includes(name));

/**
 * The program, what the shell needs first, and a note of what else must be.
 * @param {Choice} choice
 * @param {Values} values
 * @param {Place} place
 */
export function snippet(choice, values, place) {
  const takeover = choice.way === "takeover";
  const writers = /** @type {Record<string, Writer>} */ ({ JavaScript: javascript, Python: python, curl });
  const { setup, program } = writers[choice.language](choice, values, place, takeover);
  return { setup: lines(setup), program: lines(program), note: note(choice, place, takeover) };
}

/** @param {(string | null)[]} each */
const lines = (each) => each.filter((line) => line !== null).map((line) => `${line}\n`).join("");

/** @param {Choice} choice @param {Place} place @param {boolean} takeover */
function note({ language }, { server, secure, localCa }, takeover) {
  if (takeover) return faults.takeover;
  if (language !== "Python" || localCa || server === secure) return "";
  const { hostname } = new URL(server);
  const names = isNamed(hostname, LOOPBACK) ? "" : ` --tls-names ${hostname}`;
  if (!secure) return faults.httpsOnly(`--tls-port 8443${names}`);
  return faults.otherName(names.trim());
}

/** @typedef {(choice: Choice, values: Values, place: Place, takeover: boolean) => {setup: (string | null)[], program: (string | null)[]}} Writer */

/** @type {Writer} */
function javascript({ call, picture }, values, place, takeover) {
  const file = picture === "file";
  const image = file ? '`data:image/jpeg;base64,${await readFile("input.jpg", "base64")}`' : JSON.stringify(SAMPLE);
  const input = (/** @type {string} */ indent) => object(fields(call, values), image, indent, (name) => name);
  const save = (/** @type {string} */ from) => `await writeFile("output.jpg", (await fetch(${from}.images[0].url)).body);`;
  const calls = /** @type {Record<string, string[]>} */ ({
    run: [`const { data } = await fal.run("${APP}", {`, `  input: ${input("  ")},`, "});", save("data")],
    queue: [
      `const { data } = await fal.subscribe("${APP}", {`,
      `  input: ${input("  ")},`,
      "  onQueueUpdate: ({ status }) => console.log(status),",
      "});",
      save("data"),
    ],
    stream: [
      `const stream = await fal.stream("${APP}", {`,
      `  input: ${input("  ")},`,
      "});",
      "for await (const event of stream) {",
      "  if (event.progress) console.log(event.progress); // and a preview in event.images",
      "}",
      save("(await stream.done())"),
    ],
    realtime: [
      `const connection = fal.realtime.connect("${APP}", {`,
      "  onResult: async (result) => {",
      `    ${save("result")}`,
      "    process.exit(); // or send the next",
      "  },",
      "  onError: console.error,",
      "});",
      `connection.send(${input("")});`,
    ],
  });
  return {
    setup: [...trusting("ca.pem", ["NODE_EXTRA_CA_CERTS"], place, takeover), ...key(place, "")],
    program: [
      `// picture.mjs: npm install @fal-ai/client${call === "realtime" ? "; Node 22 or newer" : ""}`,
      `import { ${file ? "readFile, " : ""}writeFile } from "node:fs/promises";`,
      'import { fal } from "@fal-ai/client";',
      "",
      ...(takeover ? [] : [`fal.config({ proxyUrl: { url: "${place.server}/api/fal/proxy", when: "always" } });`]),
      ...(takeover || call !== "realtime"
        ? []
        : [
            "// The client opens its sockets at fal.run, whatever the proxy: lead them here.",
            "globalThis.WebSocket = class extends WebSocket {",
            "  constructor(url) {",
            `    super(String(url).replace("wss://fal.run", "${place.server.replace("http", "ws")}/run"));`,
            "  }",
            "};",
          ]),
      takeover ? null : "",
      ...calls[call],
    ],
  };
}

/** @type {Writer} */
function python({ call, picture }, values, place, takeover) {
  const image = picture === "file" ? 'fal_client.encode_file("input.jpg")' : JSON.stringify(SAMPLE);
  const given = fields(call, values);
  const literal = (/** @type {unknown} */ value) => (typeof value === "boolean" ? (value ? "True" : "False") : JSON.stringify(value));
  const body = (/** @type {string} */ indent) => object(given, image, indent, JSON.stringify, "    ", literal);
  const asked = [`    "${APP}",`, `    arguments=${body("    ")},`];
  const calls = /** @type {Record<string, string[]>} */ ({
    run: ["result = fal_client.run(", ...asked, ")"],
    queue: ["result = fal_client.subscribe(", ...asked, "    on_enqueue=print,", ")"],
    stream: [
      "for result in fal_client.stream(",
      ...asked,
      "):",
      '    print(result.get("progress", "done"))  # and a preview in result["images"]',
    ],
    realtime: [
      `with fal_client.realtime("${APP}"${takeover ? "" : ", use_jwt=False"}) as connection:`,
      `    connection.send(${body("    ")})`,
      "    result = connection.recv()",
    ],
  });
  const host = (place.secure || `https://${new URL(place.server).hostname}:8443`).replace("https://", "");
  const hosts = takeover ? null : `export FAL_RUN_HOST=${host}/run FAL_QUEUE_RUN_HOST=${host}/queue`;
  return {
    setup: [...trusting("bundle.pem", ["SSL_CERT_FILE"], place, takeover || !place.secure), hosts, ...key(place, "any:thing")],
    program: [
      "# picture.py: pip install fal-client",
      "import urllib.request",
      "",
      "import fal_client",
      "",
      ...calls[call],
      'urllib.request.urlretrieve(result["images"][0]["url"], "output.jpg")',
    ],
  };
}

/** @type {Writer} */
function curl({ call, picture }, values, place, takeover) {
  const file = picture === "file";
  const image = file ? "\"data:image/jpeg;base64,$(base64 < input.jpg | tr -d '\\n')\"" : JSON.stringify(SAMPLE);
  // The shell replaces what is in this document only where a file's content has to be put in.
  const text = (/** @type {unknown} */ value) => (file ? JSON.stringify(value).replace(/[\\$`]/g, "\\$&") : JSON.stringify(value));
  const body = [`${object(fields(call, values), image, "", JSON.stringify, "  ", text, "")}`, "END"];
  const base = takeover ? (call === "queue" ? "https://queue.fal.run" : FAL) : `${place.server}/${call === "queue" ? "queue" : "run"}`;
  const auth = place.keys ? ' -H "Authorization: Key $FAL_KEY"' : "";
  const post = (/** @type {string} */ path) =>
    `curl -sS${call === "stream" ? "N" : ""} ${base}/${APP}${path}${auth} -H 'Content-Type: application/json' -d @- <<${file ? "END" : "'END'"}`;
  const url = (/** @type {string} */ name) => `sed -n 's/.*"${name}":"\\([^"]*\\)".*/\\1/p'`;
  const picked = `sed -n 's/.*"images":\\[{"url":"\\(http[^"]*\\)".*/\\1/p'`;
  const save = ['echo "$answer"', `curl -sS -o output.jpg "$(echo "$answer" | ${picked})"`];
  const calls = /** @type {Record<string, string[]>} */ ({
    run: [`answer=$(${post("")}`, ...body, ")", ...save],
    queue: [
      `job=$(${post("")}`,
      ...body,
      ")",
      `job=$(echo "$job" | ${url("response_url")})`,
      `curl -sSN${auth} "$job/status/stream" | ${url("status")}`,
      `answer=$(curl -sS${auth} "$job")`,
      ...save,
    ],
    stream: [
      `${post("/stream")} | tee events.txt | sed -n 's/.*"progress":{\\(.*\\)}}/\\1/p'`,
      ...body,
      `curl -sS -o output.jpg "$(${picked} events.txt)"`,
    ],
  });
  return { setup: [...trusting("bundle.pem", ["CURL_CA_BUNDLE"], place, takeover), ...key(place, "")], program: calls[call] };
}

/**
 * How a program trusts our CA, if it meets it: after a takeover, or where its way is https.
 * @param {string} file
 * @param {string[]} variables
 * @param {Place} place
 * @param {boolean} always
 */
function trusting(file, variables, { server, secure, localCa }, always) {
  const python = variables[0] === "SSL_CERT_FILE";
  if (!always && !(localCa && (python || server === secure))) return [];
  const insecure = server.startsWith("https:") ? "k" : "";
  return [`curl -sS${insecure}o ${file} ${server}/trust/${file}`, ...variables.map((name) => `export ${name}=$PWD/${file}`)];
}

/** @param {Place} place @param {string} any what a client must have where there are no keys */
function key({ keys }, any) {
  if (keys) return [': "${FAL_KEY:?is not set. Hint: export FAL_KEY=id:secret}"'];
  return any ? [`export FAL_KEY=${any}`] : [];
}

/** @param {string} call @param {Values} values @returns {[string, unknown][]} */
function fields(call, values) {
  const realtime = call === "realtime";
  const told = Object.entries(values).filter(
    ([name, value]) => value !== DEFAULTS[name] && !(realtime && name === "num_images"),
  );
  return realtime ? [...told, ["sync_mode", true]] : told;
}

/**
 * An object's text, one field a line; the picture comes behind the prompt.
 * @param {[string, unknown][]} given
 * @param {string} image its expression
 * @param {string} indent of the line that it begins on
 * @param {(name: string) => string} named
 * @param {string} [step]
 * @param {(value: unknown) => string} [text]
 * @param {string} [last] what follows the last field
 */
function object(given, image, indent, named, step = "  ", text = JSON.stringify, last = ",") {
  const [prompt, ...rest] = given.map(([name, value]) => `${named(name)}: ${text(value)}`);
  const lines = [prompt, `${named("image_url")}: ${image}`, ...rest];
  return `{\n${lines.map((line) => indent + step + line).join(",\n")}${last}\n${indent}}`;
}
