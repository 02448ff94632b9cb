// A browser page with serverless-client 0.6.1 behind serverless-proxy 0.6.0 (both as published), as draw-fast has them.
import http from "node:http";
import { handleRequest } from "serverless-proxy-0.6";
import { APP, fal, fault, input, say } from "./kit.mjs";

const seen = [];
const server = http.createServer(async (request, response) => {
  let body = "";
  for await (const chunk of request) body += chunk;
  const target = request.headers["x-fal-target-url"];
  await handleRequest({
    id: "test",
    method: request.method,
    getHeaders: () => request.headers,
    getHeader: (name) => request.headers[name],
    sendHeader: (name, value) => response.setHeader(name, value),
    getBody: async () => body,
    respondWith: (status, data) => {
      seen.push(`${status} ${request.method} ${new URL(target).host}${new URL(target).pathname}`);
      response.removeHeader("transfer-encoding");
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(data));
    },
  });
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const targetUrl = `http://127.0.0.1:${server.address().port}/api/fal/proxy`;

globalThis.window = { document: {} }; // the client sends through its proxy only in a page
fal.config({ credentials: undefined, proxyUrl: targetUrl });

const connection = fal.realtime.connect(APP, {
  connectionKey: "page",
  onResult: async (result) => {
    const output = await fal.run(APP, { input: { ...input, image_url: "https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png" } }).catch(fault);
    say({ result, output, seen });
    process.exit();
  },
  onError: (error) => {
    say({ error: fault(error), seen });
    process.exit();
  },
});
connection.send({ ...input, sync_mode: true, request_id: "page" });
