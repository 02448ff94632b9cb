// One input, silence until the server closes, one more input: what onError hears of it.
import { APP, fal, fault, input, options, say } from "./kit.mjs";

const results = [];
const errors = [];
const connection = fal.realtime.connect(APP, {
  connectionKey: "test",
  throttleInterval: 0,
  onResult: (result) => {
    results.push(result.request_id);
    if (results.length === 1) setTimeout(() => send("after"), options.silenceMs);
    else finish();
  },
  onError: (error) => errors.push(fault(error)),
});

function send(request_id) {
  connection.send({ ...input, sync_mode: true, request_id });
}
function finish() {
  say({ results, errors });
  process.exit();
}
send("before");
