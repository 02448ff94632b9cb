// More calls at once than the server takes.
import { APP, fal, fault, input, options, say } from "./kit.mjs";

const calls = Array.from({ length: options.calls }, () => fal.run(APP, { input }));
const outcomes = await Promise.all(calls.map((call) => call.then(() => "ok", (error) => fault(error).status)));
say(outcomes);
