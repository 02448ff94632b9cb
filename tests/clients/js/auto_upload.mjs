// A Blob in the input is uploaded by the client before the call.
import { APP, fal, input, say } from "./kit.mjs";

const picture = await (await fetch(process.env.PICTURE)).blob();
say(await fal.run(APP, { input: { ...input, image_url: picture } }));
