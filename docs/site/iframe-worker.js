/* Search of a site that is read from the disk: browsers start no worker from a file, so it runs in a hidden frame. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      const inside = frame.contentWindow;
      const script = frame.contentDocument.createElement("script");
      // What a worker posts goes to its page; what the page posts before the script is loaded waits for it.
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const loaded = new Promise((done) => (script.onload = done));
      this.postMessage = (data) => loaded.then(() => inside.dispatchEvent(new MessageEvent("message", { data })));
      script.src = address;
      frame.contentDocument.head.append(script);
    }
  };
}
