// What the benchmark sees of the page: put into it by the debugger, to which the page's policy does not apply.
(() => {
  const seen = (globalThis.__seen = { taken: [], sent: [], heard: [], painted: [], changed: 0, behind: [], errors: [], usable: 0, since: 0 });
  const faults = new Set(globalThis.__faults);
  const now = () => performance.now();
  let changedWhenTaken = 0;

  // A picture for the next frame is taken off the input's canvas.
  const createBitmap = globalThis.createImageBitmap;
  globalThis.createImageBitmap = function (from, ...rest) {
    if (from instanceof HTMLCanvasElement && from.closest(".in")) {
      seen.taken.push(now());
      changedWhenTaken = seen.changed;
    }
    return createBitmap.call(this, from, ...rest);
  };

  const send = WebSocket.prototype.send;
  WebSocket.prototype.send = function (data) {
    const go = () => {
      seen.sent.push([now(), seen.taken.at(-1), seen.changed - changedWhenTaken]);
      send.call(this, data);
    };
    if (faults.has("stale")) setTimeout(go, 2000);
    else go();
  };

  const kept = [];
  globalThis.WebSocket = class extends WebSocket {
    constructor(...given) {
      super(...given);
      this.addEventListener("message", () => {
        seen.heard.push(now());
        if (faults.has("busy")) for (const end = now() + 40; now() < end; );
        if (faults.has("leak")) kept.push(new Array(1_000_000).fill(Math.random()));
        if (faults.has("lost") && seen.heard.length === 5) this.close();
      });
    }
  };

  const draw = CanvasRenderingContext2D.prototype.drawImage;
  CanvasRenderingContext2D.prototype.drawImage = function (...given) {
    if (this.canvas.parentElement?.classList.contains("square")) {
      if (this.canvas.closest(".out")) seen.painted.push(now());
      else seen.changed += 1;
    }
    return draw.apply(this, given);
  };

  // Usable: the form is there, takes a prompt, and its button may be pressed.
  const look = () => {
    for (const { textContent } of document.querySelectorAll(".said.wrong, .notice.bad")) {
      if (textContent && !seen.errors.includes(textContent)) seen.errors.push(textContent);
    }
    const [prompt, generate] = [document.querySelector("#prompt"), document.querySelector(".ask button.main")];
    if (seen.usable || !prompt || prompt.disabled || !generate || generate.disabled) return;
    seen.usable = performance.timeOrigin + now();
  };
  new MutationObserver(look).observe(document, { subtree: true, childList: true, attributeFilter: ["class", "disabled"] });
})();
