// fal's server-proxy as an app's own route, which adds the key that its pages don't have; `then` a script through it.
import http from "node:http";
import { Readable } from "node:stream";
import { createRequestHandler } from "@fal-ai/server-proxy/svelte";

const { then, ...options } = JSON.parse(process.argv[2]);
const authorization = `Key ${process.env.FAL_KEY}`;
delete process.env.FAL_KEY; // the client would send it itself
const { requestHandler } = createRequestHandler({ resolveFalAuth: async () => authorization });

const server = http.createServer(async (incoming, outgoing) => {
  const { method, headers } = incoming;
  const body = Buffer.concat(await Array.fromAsync(incoming));
  const request = new Request("http://app/api/fal/proxy", { method, headers, body: method === "GET" ? undefined : body });
  const answer = await requestHandler({ request });
  outgoing.writeHead(answer.status, Object.fromEntries(answer.headers));
  Readable.fromWeb(answer.body).pipe(outgoing);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
server.unref();

const proxy = `http://127.0.0.1:${server.address().port}/api/fal/proxy`;
process.argv[2] = JSON.stringify({ ...options, proxy });
await import(`./${then}`);
