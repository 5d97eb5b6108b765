// The console's script. Every page works without it: it refreshes what is looked at, asks in dialogs instead of on pages
// of their own, and changes the theme at once.
"use strict";

// --- what is looked at is refreshed: the page's `#live`, for as long as its tab is visible

const live = {
  etag: null,
  timer: 0,
  failures: 0,
  paused: false,
  seconds: 5,

  start() {
    const shown = document.getElementById("live");
    if (!shown) return;
    const bar = document.createElement("p");
    bar.className = "live-bar";
    this.label = document.createElement("span");
    this.button = document.createElement("button");
    this.button.type = "button";
    this.button.className = "quiet";
    bar.append(this.label, " ", this.button);
    shown.before(bar);
    this.button.addEventListener("click", () => {
      this.paused = !this.paused;
      this.paused ? clearTimeout(this.timer) : this.tick();
      this.show();
    });
    document.addEventListener("visibilitychange", () => {
      clearTimeout(this.timer);
      if (document.visibilityState === "visible" && !this.paused) this.tick();
    });
    this.show();
    this.again();
  },

  show() {
    const at = new Date().toLocaleTimeString();
    this.label.textContent = this.paused
      ? "Updates are paused"
      : this.failures ? "No answer; trying again" : `Updated ${at}`;
    this.button.textContent = this.paused ? "Resume updates" : "Pause updates";
  },

  again() {
    clearTimeout(this.timer);
    if (this.paused || document.visibilityState !== "visible") return;
    this.timer = setTimeout(() => this.tick(), 1000 * this.seconds * 2 ** Math.min(this.failures, 5));
  },

  async tick() {
    try {
      const headers = this.etag ? { "X-Live": "1", "If-None-Match": this.etag } : { "X-Live": "1" };
      const answer = await fetch(location.href, { headers, cache: "no-store", signal: AbortSignal.timeout(30000) });
      if (answer.status === 401 || answer.status === 404) {
        location.reload(); // signed out, or what was looked at is gone: the page says so
        return;
      }
      if (!answer.ok && answer.status !== 304) throw new Error(answer.statusText);
      this.failures = 0;
      this.seconds = Number(answer.headers.get("X-Again-After")) || 5;
      if (answer.status === 200) {
        this.etag = answer.headers.get("ETag");
        this.put(await answer.text());
      }
    } catch {
      this.failures += 1;
    }
    this.show();
    this.again();
  },

  put(html) {
    const fresh = new DOMParser().parseFromString(html, "text/html").getElementById("live");
    const shown = document.getElementById("live");
    if (this.paused || !fresh || !shown || selecting(shown)) return;
    const said = fresh.dataset.said;
    if (said && said !== shown.dataset.said) say(said);
    morph(shown, document.importNode(fresh, true));
  },
};

function selecting(node) {
  const selection = getSelection();
  return !selection.isCollapsed && node.contains(selection.anchorNode);
}

function say(text) {
  document.getElementById("said").textContent = text;
}

// Makes one element like another, and leaves alone what is the same: focus, scrolling and open details stay.
function morph(from, to) {
  if (from.isEqualNode(to)) return;
  if (from.nodeName !== to.nodeName || (from.id || "") !== (to.id || "")) {
    from.replaceWith(to);
    return;
  }
  if (from.nodeType !== Node.ELEMENT_NODE) {
    from.data = to.data;
    return;
  }
  for (const { name } of [...from.attributes]) if (!to.hasAttribute(name) && name !== "open") from.removeAttribute(name);
  for (const { name, value } of to.attributes) if (from.getAttribute(name) !== value) from.setAttribute(name, value);
  if (from.matches("input, select, textarea")) return;
  let at = from.firstChild;
  for (const wanted of [...to.childNodes]) {
    const known = wanted.id && [...from.children].find((each) => each.id === wanted.id);
    if (known && known !== at) from.insertBefore(known, at);
    const present = known || at;
    if (!present) {
      from.append(wanted);
      continue;
    }
    if (!known && present.id && present.id !== wanted.id) {
      from.insertBefore(wanted, present); // something new before what goes on to be there
      continue;
    }
    at = present.nextSibling;
    morph(present, wanted);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

// --- whether to do something is asked in a dialog: that part of the page which asks

async function ask(link) {
  let answer;
  try {
    answer = await fetch(link.href, { cache: "no-store" });
  } catch {
    location.href = link.href;
    return;
  }
  const text = await answer.text();
  const asking = new DOMParser().parseFromString(text, "text/html").querySelector(".asking");
  if (!asking) {
    location.href = link.href; // it cannot be done, or somebody has to sign in: the page says which
    return;
  }
  const heading = document.createElement("h2");
  const former = asking.querySelector("h1");
  heading.id = "asked";
  heading.textContent = former.textContent;
  former.replaceWith(heading);
  const dialog = document.getElementById("asking");
  dialog.setAttribute("aria-labelledby", "asked");
  dialog.replaceChildren(document.importNode(asking, true));
  dialog.showModal();
}

document.addEventListener("click", (event) => {
  if (event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const link = event.target.closest("a[data-ask]");
  if (link) {
    event.preventDefault();
    ask(link);
  }
  const cancel = event.target.closest("[data-cancel]");
  const dialog = cancel && cancel.closest("dialog");
  if (dialog) {
    event.preventDefault();
    dialog.close();
  }
});

// --- a form is sent once, and the theme changes at once

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  if (form.dataset.sent) event.preventDefault();
  form.dataset.sent = "1";
});

addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
});

const theme = document.getElementById("theme");
if (theme) {
  theme.addEventListener("change", () => {
    const root = document.documentElement;
    theme.value ? (root.dataset.theme = theme.value) : delete root.dataset.theme;
    fetch(theme.form.action, { method: "POST", body: new URLSearchParams(new FormData(theme.form)), redirect: "manual" });
  });
}

// Where the places to go to are a row that scrolls, the present one is in sight.
const place = document.querySelector(".places [aria-current]");
if (place) place.closest("nav").scrollLeft = place.offsetLeft - innerWidth / 3;

live.start();
