"use strict";

document.documentElement.classList.add("scripted");

const pageOfRows = 50;
const data = JSON.parse(document.getElementById("rows").textContent);
const place = Object.fromEntries(data.keys.map((key, i) => [key, i]));
const rank = Object.keys(data.verdicts);

const show = {
  text: (value) => value,
  verdict: (value) => data.verdicts[value],
  number(value) {
    const digits = Math.abs(value) < 99.95 ? 1 : 0;
    const format = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    return value.toLocaleString("en", format).replace("-", "−");
  },
  probability: (value) => (value < 1e-4 ? "< 0.0001" : value.toFixed(value < 0.001 ? 4 : 3)),
  count: (value) => value.toLocaleString("en"),
  distance: (value) => value.toFixed(2),
};

function compare(key) {
  const at = place[key];
  const kind = data.kinds[key];
  if (kind === "text") {
    return (a, b) => a[at].localeCompare(b[at], "en", { numeric: true });
  }
  if (kind === "verdict") return (a, b) => rank.indexOf(a[at]) - rank.indexOf(b[at]);
  return (a, b) => a[at] - b[at];
}

// Buttons of which one is pressed: calls back with its verdict.
function chips(group, pressed) {
  if (!group) return;
  group.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    for (const other of group.querySelectorAll("button")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    pressed(button.dataset.verdict);
  });
}

function table() {
  const state = { key: null, descending: false, verdict: "", search: "", page: 0 };
  const body = document.querySelector("#table tbody");
  const headers = [...document.querySelectorAll("#table thead th")];
  const previous = document.getElementById("previous");
  const next = document.getElementById("next");
  const status = document.getElementById("status");
  const texts = data.keys.filter((key) => data.kinds[key] === "text").map((key) => place[key]);

  function matching() {
    const wanted = state.search.trim().toLowerCase();
    const rows = data.rows.filter(
      (row) =>
        (!state.verdict || row[place.verdict] === state.verdict) &&
        (!wanted || texts.some((at) => row[at].toLowerCase().includes(wanted))),
    );
    if (state.key === null) return rows;
    const at = place[state.key];
    const missing = (row) => row[at] === null || row[at] === "";
    const order = compare(state.key);
    const known = rows.filter((row) => !missing(row)).sort(order);
    if (state.descending) known.reverse();
    return known.concat(rows.filter(missing));
  }

  function cell(row, key) {
    const element = document.createElement("td");
    const value = row[place[key]];
    const kind = data.kinds[key];
    const text = value === null ? "–" : show[kind](value);
    if (kind !== "text" && kind !== "verdict") element.className = "right";
    if (kind === "verdict") element.className = "verdict v-" + value;
    if (key === "id" && row[place.anchor]) {
      const link = document.createElement("a");
      link.href = "#" + row[place.anchor];
      link.textContent = text;
      element.append(link);
    } else {
      element.textContent = text;
    }
    if (kind === "text") {
      element.classList.add("id");
      element.title = text;
    }
    return element;
  }

  function draw() {
    const rows = matching();
    const pages = Math.max(1, Math.ceil(rows.length / pageOfRows));
    state.page = Math.min(state.page, pages - 1);
    const first = state.page * pageOfRows;
    const shown = rows.slice(first, first + pageOfRows);
    body.replaceChildren(
      ...shown.map((row) => {
        const line = document.createElement("tr");
        line.append(...headers.map((header) => cell(row, header.dataset.key)));
        return line;
      }),
    );
    status.textContent = rows.length
      ? `${first + 1} to ${first + shown.length} of ${rows.length.toLocaleString("en")}`
      : "No image matches";
    previous.disabled = state.page === 0;
    next.disabled = state.page === pages - 1;
  }

  for (const header of headers) {
    header.querySelector("button").addEventListener("click", () => {
      const key = header.dataset.key;
      state.descending = state.key === key && !state.descending;
      state.key = key;
      state.page = 0;
      for (const other of headers) other.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
      draw();
    });
  }
  document.getElementById("search").addEventListener("input", (event) => {
    state.search = event.target.value;
    state.page = 0;
    draw();
  });
  chips(document.getElementById("verdict-filter"), (verdict) => {
    state.verdict = verdict;
    state.page = 0;
    draw();
  });
  previous.addEventListener("click", () => { state.page -= 1; draw(); });
  next.addEventListener("click", () => { state.page += 1; draw(); });
  draw();
}

function cards() {
  const list = document.getElementById("cards");
  if (!list) return;
  const step = Number(list.dataset.page);
  const all = [...list.children];
  const more = document.getElementById("more-cards");
  const status = document.getElementById("cards-status");
  let verdict = "";
  let limit = step;

  function draw() {
    const chosen = all.filter((card) => !verdict || card.dataset.verdict === verdict);
    const shown = new Set(chosen.slice(0, limit));
    for (const card of all) card.classList.toggle("later", !shown.has(card));
    more.hidden = shown.size === chosen.length;
    status.textContent = `${shown.size} of ${chosen.length} shown`;
  }

  function reveal() {
    const index = all.findIndex((card) => "#" + card.id === location.hash);
    if (index < 0) return;
    if (all[index].classList.contains("later")) {
      document.querySelector("#card-filter button").click();
      limit = Math.max(limit, index + 1);
      draw();
    }
    all[index].scrollIntoView();
  }

  more.addEventListener("click", () => { limit += step; draw(); });
  chips(document.getElementById("card-filter"), (chosen) => {
    verdict = chosen;
    limit = step;
    draw();
  });
  window.addEventListener("hashchange", reveal);
  draw();
  reveal();
}

table();
cards();
