// The page's script: strokes on a canvas go to the server over one websocket, and the newest picture is shown.

import { fal } from "@fal-ai/client";

const server = "http://localhost:8000";
const proxy = "/api/fal/proxy"; // of this page's own server, examples/proxy.mjs, which has the key

const canvas = document.querySelector("canvas");
const picture = document.querySelector("img");
const status = document.querySelector("[role=status]");
const [prompt, colour] = document.querySelectorAll("input");

// fal's client opens its sockets at fal.run and nowhere else. This leads them to your server; leave it out if fal.run is
// your server on this machine (`fourstep serve --takeover`).
globalThis.WebSocket = class extends WebSocket {
  constructor(url) {
    super(url.replace("wss://fal.run", `${server.replace("http", "ws")}/run`));
  }
};

// A token lets this page in for two minutes; the client asks for one when it connects.
async function tokenProvider(app) {
  const answer = await fetch(proxy, {
    method: "POST",
    headers: { "content-type": "application/json", "x-fal-target-url": "https://rest.fal.ai/tokens/" },
    body: JSON.stringify({ allowed_apps: [app], token_expiration: 120 }),
  });
  if (!answer.ok) throw new Error(`no token: ${await answer.text()}`);
  return answer.json();
}

const connection = fal.realtime.connect("fal-ai/lcm-sd15-i2i", {
  connectionKey: "drawing",
  tokenProvider,
  tokenExpirationSeconds: 120,
  throttleInterval: 30, // milliseconds between two inputs; the server drops what is too old when they come too fast
  onResult: (result) => {
    picture.src = result.images[0].url;
    status.textContent = `${Math.round(1000 * result.timings.inference)} ms`;
  },
  onError: (error) => (status.textContent = error.message),
});

function send() {
  connection.send({
    prompt: prompt.value,
    image_url: canvas.toDataURL("image/jpeg", 0.8),
    strength: 0.7,
    seed: 42, // the same seed each time: only what you draw changes the picture
    sync_mode: true, // the picture comes in the answer, not as a link
  });
}

const pen = canvas.getContext("2d");
pen.fillStyle = "white";
pen.fillRect(0, 0, canvas.width, canvas.height);
Object.assign(pen, { lineWidth: 24, lineCap: "round", lineJoin: "round" });

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  pen.strokeStyle = colour.value;
  pen.beginPath();
  pen.moveTo(...place(event));
});
canvas.addEventListener("pointermove", (event) => {
  if (!event.buttons) return;
  pen.lineTo(...place(event));
  pen.stroke();
  send();
});
prompt.addEventListener("input", send);
