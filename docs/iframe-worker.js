// Search in a site that is opened as a file. Browsers start no worker from a file, and mkdocs-material's search runs in
// one: here its script runs in a hidden frame instead. Served over HTTP, nothing is replaced. The theme looks for the name
// IFrameWorker.
"use strict";
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    #waiting = [];
    #inside = null;
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<!doctype html><title>search</title>";
      frame.onload = () => {
        const inside = frame.contentWindow;
        inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        const script = inside.document.createElement("script");
        script.src = url;
        script.onload = () => {
          this.#inside = inside;
          for (const data of this.#waiting.splice(0)) this.postMessage(data);
        };
        inside.document.body.append(script);
      };
      document.body.append(frame);
    }
    postMessage(data) {
      if (this.#inside) this.#inside.dispatchEvent(new MessageEvent("message", { data }));
      else this.#waiting.push(data);
    }
    terminate() {}
  };
}
