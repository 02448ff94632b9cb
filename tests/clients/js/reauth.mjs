// A token that is no good, then a good one: the client fetches anew by itself at its next send.
import { APP, fal, fault, input, say } from "./kit.mjs";

const errors = [];
let tokens = 0;
const connection = fal.realtime.connect(APP, {
  connectionKey: "test",
  throttleInterval: 0,
  tokenProvider: async () => (tokens++ ? goodToken() : "nonsense"),
  onResult: (result) => {
    say({ result, tokens, errors });
    process.exit();
  },
  onError: (error) => errors.push(fault(error)),
});

async function goodToken() {
  const answer = await fetch("https://rest.fal.ai/tokens/realtime", {
    method: "POST",
    headers: { authorization: `Key ${process.env.FAL_KEY}`, "content-type": "application/json" },
    body: JSON.stringify({ allowed_apps: [`${APP}/realtime`], duration: 60 }),
  });
  return (await answer.json()).token;
}

const sending = setInterval(() => connection.send({ ...input, sync_mode: true }), 300);
setTimeout(() => clearInterval(sending), 5000);
