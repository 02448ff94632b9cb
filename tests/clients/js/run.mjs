import { APP, fal, input, say } from "./kit.mjs";

say(await fal.run(APP, { input }));
