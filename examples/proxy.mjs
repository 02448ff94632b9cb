// Your app's own server: it serves your pages, and passes their calls on with a key that no page ever sees.
//
//     fourstep serve --model auto
//     node examples/proxy.mjs [FOLDER]         then open http://localhost:3000
//
// In the pages: fal.config({ proxyUrl: "/api/fal/proxy" }). FOLDER has them: examples/drawing unless you name another.
// `fourstep keys add my-app` makes a key, which this program gets as FAL_KEY.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";

const server = process.env.SERVER_URL ?? "http://localhost:8000";
const port = Number(process.env.PORT ?? 3000);
const folder = process.argv[2] ?? fileURLToPath(new URL("drawing", import.meta.url));
const types = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript" };
const key = process.env.FAL_KEY ?? "any:thing"; // a server without keys takes any

async function pass(request, response) {
  // Here your app asks who it is, by its own cookie or session: whoever comes further than this line uses your key.
  const headers = { authorization: `Key ${key}` };
  for (const name of ["x-fal-target-url", "content-type", "accept"])
    if (request.headers[name]) headers[name] = request.headers[name];
  const body = request.method === "GET" ? undefined : Buffer.concat(await Array.fromAsync(request));
  const answer = await fetch(`${server}/api/fal/proxy`, { method: request.method, headers, body });
  response.writeHead(answer.status, Object.fromEntries(answer.headers));
  await pipeline(answer.body ?? [], response);
}

async function page(request, response) {
  const path = normalize(new URL(request.url, "http://app").pathname); // no `..` is left in it
  const name = path.endsWith("/") ? `${path}index.html` : path;
  const content = await readFile(join(folder, name)).catch(() => null);
  response.writeHead(content ? 200 : 404, { "content-type": types[extname(name)] ?? "application/octet-stream" });
  response.end(content ?? "There is no such page");
}

createServer((request, response) => {
  const answered = request.url.startsWith("/api/fal/proxy") ? pass(request, response) : page(request, response);
  answered.catch((error) => {
    console.error(error);
    if (!response.headersSent) response.writeHead(502);
    response.end();
  });
}).listen(port, "127.0.0.1", function () {
  console.log(`http://localhost:${this.address().port}`);
});
