// Uploads with progress, one after the other, and buttons that copy. What is there without it is in the page.
"use strict";

const MOST_BYTES = 5 * 1024 ** 3;

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

  function send(file, shown) {
    const failed = (why) => {
      shown.text.className = "failed";
      shown.text.textContent = `${file.name}: not uploaded. ${why}`;
      shown.bar.remove();
      return false;
    };
    if (file.size > MOST_BYTES) {
      return failed(`It has ${amount(file.size)}, and more than 5 GiB takes an S3 client that uploads in parts.`);
    }
    const query = new URLSearchParams({ key: into() + file.name });
    if (form.elements.replace.checked) query.set("replace", "1");
    return new Promise((resolve) => {
      running = new XMLHttpRequest();
      running.open("POST", `${form.dataset.upload}?${query}`);
      running.setRequestHeader("X-CSRF-Token", document.body.dataset.csrf);
      running.responseType = "text";
      running.upload.onprogress = (event) => {
        shown.bar.value = event.loaded;
        shown.text.textContent = `${file.name}: ${amount(event.loaded)} of ${amount(file.size)}`;
      };
      running.onload = () => {
        if (running.status === 201) {
          shown.bar.value = shown.bar.max;
          shown.text.textContent = `${file.name}: uploaded`;
          resolve(true);
          return;
        }
        let why = `The answer was ${running.status}.`;
        try {
          why = JSON.parse(running.responseText).message;
        } catch {
          // A page: somebody has to sign in again, or it is not from this one.
          if (running.status === 200 || running.status === 401) why = "You are signed out: load the page again.";
        }
        resolve(failed(why));
      };
      running.onerror = () => resolve(failed("The connection broke."));
      running.onabort = () => resolve(failed("It was stopped."));
      running.send(file);
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
