// What a page that somebody uploaded tries on whoever opens it while signed in to the console. Each attempt is noted in
// `attempts`, with whatever it got hold of; CONSOLE, API and ITEM are put in by the test.
const attempts = [];

async function attempt(name, what) {
  const patience = new Promise((done) => setTimeout(done, 4000, "no answer"));
  try {
    attempts.push([name, String(await Promise.race([what(), patience]))]);
  } catch (error) {
    attempts.push([name, `refused: ${error.name}`]);
  }
}

const loaded = (element) =>
  new Promise((done) => {
    element.addEventListener("load", () => done("load"));
    element.addEventListener("error", () => done("error"));
    setTimeout(done, 3000, "neither");
  });

// An SVG document makes elements of its own kind unless told otherwise.
const html = (name) => document.createElementNS("http://www.w3.org/1999/xhtml", name);
const root = document.body || document.documentElement;

const all = (async () => {
  for (const mode of ["cors", "no-cors", "same-origin"]) {
    await attempt(`fetch the console, ${mode}`, async () => (await fetch(`${CONSOLE}/`, { mode, credentials: "include" })).text());
    await attempt(`fetch the API, ${mode}`, async () => (await fetch(`${API}/overview`, { mode, credentials: "include" })).text());
    const body = new URLSearchParams({ csrf: "guessed" });
    for (const action of ["retry", "drop"]) {
      await attempt(`post ${action}, ${mode}`, async () =>
        (await fetch(`${CONSOLE}/queue/items/${ITEM}/${action}`, { method: "POST", mode, credentials: "include", body })).text());
    }
    await attempt(`post to the API, ${mode}`, async () =>
      (await fetch(`${API}/queue/items/${ITEM}/retry`, { method: "POST", mode, credentials: "include" })).text());
  }
  await attempt("drop by the API", async () =>
    (await fetch(`${API}/queue/items/${ITEM}`, { method: "DELETE", credentials: "include" })).text());
  await attempt("beacon", () => navigator.sendBeacon(`${CONSOLE}/queue/items/${ITEM}/drop`, new URLSearchParams({ csrf: "" })) && "sent");
  await attempt("cookie", () => document.cookie);
  await attempt("frame", async () => {
    const frame = html("iframe");
    frame.src = `${CONSOLE}/`;
    root.append(frame);
    await loaded(frame);
    return frame.contentDocument.documentElement.outerHTML;
  });
  await attempt("script", async () => {
    const script = html("script");
    script.src = `${CONSOLE}/`;
    root.append(script);
    return loaded(script);
  });
  await attempt("window", async () => {
    const opened = open(`${CONSOLE}/`);
    await new Promise((done) => setTimeout(done, 1500));
    return opened.document.documentElement.outerHTML;
  });
  await attempt("form", async () => {
    const form = html("form");
    form.method = "post";
    form.target = "_blank";
    form.action = `${CONSOLE}/queue/items/${ITEM}/drop`;
    root.append(form);
    form.submit();
    await new Promise((done) => setTimeout(done, 1500));
    return "sent";
  });
  return attempts;
})();
