// Uploads with progress, one after the other, and buttons that copy. What is there without it is in the page.
"use strict";

const PART_BYTES = 64 * 1024 ** 2;
const MOST_PARTS = 10000;
const TRIES = 4;

function told(text) {
  document.getElementById("said").textContent = text;
}

function amount(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < 3) {
    bytes /= 1024;
    unit += 1;
  }
  return `${unit ? bytes.toFixed(1) : bytes} ${units[unit]}`;
}

const form = document.querySelector("form[data-upload]");
if (form) {
  const list = form.querySelector(".uploads");
  const button = form.querySelector("button.primary");
  const stop = form.querySelector("[data-stop]");
  // A field of text has no line ends, and a folder's name can: where it was left as it is, it is what the page is of.
  const shownInto = form.elements.into.value;
  let running = null;
  let stopped = false;

  stop.addEventListener("click", () => {
    stopped = true;
    if (running) running.abort();
  });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const files = [...form.elements.files.files];
    list.replaceChildren();
    button.disabled = true;
    stop.hidden = false;
    stopped = false;
    let done = 0;
    for (const file of files) {
      if (stopped) break;
      if (await send(file, row(file))) done += 1;
    }
    button.disabled = false;
    stop.hidden = true;
    told(`${done} of ${files.length} files were uploaded.`);
    if (done === files.length && done) {
      const folder = into();
      location.assign(`${location.pathname}?prefix=${encodeURIComponent(folder.slice(0, folder.lastIndexOf("/") + 1))}`);
    }
  });

  function into() {
    return form.elements.into.value === shownInto ? form.dataset.prefix : form.elements.into.value;
  }

  function row(file) {
    const item = document.createElement("li");
    const text = document.createElement("span");
    const bar = document.createElement("progress");
    text.textContent = `${file.name}: ${amount(file.size)}`;
    bar.max = file.size || 1;
    bar.value = 0;
    bar.setAttribute("aria-label", `Upload of ${file.name}`);
    item.append(text, bar);
    list.append(item);
    return { text, bar };
  }

  // Uploads a file; whether it is there then. What is too large for one request goes in parts.
  async function send(file, shown) {
    const progress = (bytes) => {
      shown.bar.value = bytes;
      shown.text.textContent = `${file.name}: ${amount(bytes)} of ${amount(file.size)}`;
    };
    const of = { key: into() + file.name };
    const replace = form.elements.replace.checked ? { replace: "1" } : {};
    try {
      if (file.size > Number(form.dataset.most)) {
        await sendParts(file, of, replace, progress);
      } else {
        await post(form.dataset.upload, { ...of, ...replace }, file, progress);
      }
    } catch (error) {
      shown.text.className = "failed";
      shown.text.textContent = `${file.name}: not uploaded. ${error.message}`;
      shown.bar.remove();
      return false;
    }
    shown.bar.value = shown.bar.max;
    shown.text.textContent = `${file.name}: uploaded`;
    return true;
  }

  async function sendParts(file, of, replace, progress) {
    const { upload } = await post(form.dataset.parts, { ...of, type: file.type });
    const size = Math.max(PART_BYTES, Math.ceil(file.size / MOST_PARTS));
    try {
      for (let part = 1, at = 0; at < file.size; part += 1, at += size) {
        await tried(() => post(form.dataset.upload, { ...of, upload, part }, file.slice(at, at + size),
          (bytes) => progress(at + bytes)));
      }
      await post(`${form.dataset.parts}/complete`, { ...of, ...replace, upload, size: file.size });
    } catch (error) {
      // Parts that nobody completes would take up space.
      await post(`${form.dataset.parts}/abort`, { ...of, upload }).catch(() => {});
      throw error;
    }
  }

  // A part that breaks is sent again: the others need not be.
  async function tried(send) {
    for (let left = TRIES - 1; ; left -= 1) {
      try {
        return await send();
      } catch (error) {
        if (!error.broken || stopped || !left) throw error;
        await new Promise((resolve) => setTimeout(resolve, 1000 * 2 ** (TRIES - left)));
      }
    }
  }

  // What a POST is answered; an Error that says why where it is not 200 or 201, with `broken` where it may be tried again.
  function post(to, query, body = null, progress = () => {}) {
    return new Promise((resolve, reject) => {
      const refuse = (why, broken = false) => reject(Object.assign(new Error(why), { broken }));
      const request = new XMLHttpRequest();
      running = request;
      request.open("POST", `${to}?${new URLSearchParams(query)}`);
      request.setRequestHeader("X-CSRF-Token", document.body.dataset.csrf);
      request.upload.onprogress = (event) => progress(event.loaded);
      request.onload = () => {
        let told;
        try {
          told = JSON.parse(request.responseText);
        } catch {
          // A page: somebody has to sign in again, or nobody here has answered.
          const out = request.status === 200 || request.status === 401;
          refuse(out ? "You are signed out: load the page again." : `The answer was ${request.status}.`, !out);
          return;
        }
        if (request.status < 300) resolve(told);
        else refuse(told.message, request.status >= 500);
      };
      request.onerror = () => refuse("The connection broke.", true);
      request.onabort = () => refuse("It was stopped.");
      request.send(body);
    });
  }
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const field = document.getElementById(button.dataset.copy);
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
    } catch {
      document.execCommand("copy"); // no clipboard without https
    }
    told("Copied.");
    button.textContent = "Copied";
  });
}
