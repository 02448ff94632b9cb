// The message pattern of tldraw/draw-fast: a JPEG data URI on every change, answers matched by request_id, 5 s patience.
import { fal, fault, options, say } from "./kit.mjs";

const PATIENCE_MS = 5000;
const sentAt = new Map();
const answered = [];
const unknown = [];
const errors = [];
let slowest = 0;
const { send } = fal.realtime.connect("110602490-lcm-sd15-i2i", {
  connectionKey: "fal-realtime-example",
  clientOnly: false,
  throttleInterval: 0,
  onError: (error) => errors.push(fault(error)),
  onResult: (result) => {
    if (!sentAt.has(result.request_id)) unknown.push(result.request_id);
    answered.push(result.request_id);
    slowest = Math.max(slowest, performance.now() - sentAt.get(result.request_id));
    if (!result.images[0].url.startsWith("data:image/jpeg;base64,")) errors.push({ kind: "no picture" });
    if (result.request_id === String(options.messages)) finish();
  },
});

const sending = setInterval(() => {
  const request_id = String(sentAt.size + 1);
  sentAt.set(request_id, performance.now());
  send({
    prompt: "someone just paints this",
    image_url: process.env.PICTURE,
    sync_mode: true,
    strength: 0.65,
    seed: 42,
    enable_safety_checks: false,
    request_id,
  });
  if (sentAt.size < options.messages) return;
  clearInterval(sending);
  setTimeout(finish, PATIENCE_MS);
}, 1000 / options.perSecond);

function finish() {
  say({ sent: sentAt.size, answered: answered.map(Number), unknown, errors, slowest });
  process.exit();
}
