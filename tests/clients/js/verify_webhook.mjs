// fal's documented JavaScript verifier, with Node's Ed25519 in place of libsodium's.
import crypto from "node:crypto";
import http from "node:http";
import { APP, fal, input, say } from "./kit.mjs";

const JWKS_URL = "https://rest.fal.ai/.well-known/jwks.json";

async function verify(requestId, userId, timestamp, signatureHex, body) {
  if (Math.abs(Math.floor(Date.now() / 1000) - parseInt(timestamp, 10)) > 300) return false;
  const digest = crypto.createHash("sha256").update(body).digest("hex");
  const message = Buffer.from([requestId, userId, timestamp, digest].join("\n"), "utf-8");
  const { keys } = await (await fetch(JWKS_URL)).json();
  return keys.some(({ x }) => {
    const raw = Buffer.from(x, "base64url");
    const key = crypto.createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x: raw.toString("base64url") }, format: "jwk" });
    return crypto.verify(null, message, key, Buffer.from(signatureHex, "hex"));
  });
}

const server = http.createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks);
  const signed = ["request-id", "user-id", "timestamp", "signature"].map((name) => request.headers[`x-fal-webhook-${name}`]);
  response.end();
  say({ body: JSON.parse(body), verified: await verify(...signed, body), tampered: await verify(...signed, Buffer.concat([body, body])) });
  process.exit();
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
await fal.queue.submit(APP, { input, webhookUrl: `http://127.0.0.1:${server.address().port}/hook` });
