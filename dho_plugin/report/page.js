"use strict";

// Accuracy at a point of the alpha-beta grid, from what report/slider.py has packed.

function bytes(base64) {
  const text = atob(base64);
  const found = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) found[i] = text.charCodeAt(i);
  return found;
}

// A set as packed -> the same with typed arrays; float32 probabilities come first, float64 ones second.
function unpack(packed) {
  const kinds = [Float32Array, Float64Array];
  const contests = packed.contests.map((contest, i) => ({
    true: bytes(contest.true),
    sizes: bytes(contest.sizes),
    ce: new kinds[i](bytes(contest.ce).buffer),
    kd: new kinds[i](bytes(contest.kd).buffer),
  }));
  return { ...packed, contests };
}

// Images that are right with alpha * ce + (1 - alpha) * kd, where kd is at the beta of that number in the grid.
// Of equal classes the first wins, as with torch.argmax.
function hits(set, alpha, beta) {
  let right = set.always;
  for (const { true: place, sizes, ce, kd } of set.contests) {
    const shift = beta * ce.length;
    let start = 0;
    for (let image = 0; image < sizes.length; image++) {
      let best = -1;
      let winner = -1;
      for (let k = 0; k < sizes[image]; k++) {
        const value = alpha * ce[start + k] + (1 - alpha) * kd[shift + start + k];
        if (value > best) {
          best = value;
          winner = k;
        }
      }
      right += winner === place[image] ? 1 : 0;
      start += sizes[image];
    }
  }
  return right;
}

// Hits at every point: a row for each alpha, a column for each beta.
function grid(set, alphas, betas) {
  return alphas.map((alpha) => betas.map((_, beta) => hits(set, alpha, beta)));
}

// To two digits, rounded as Python does: half to even, where toFixed takes the larger. Only odd eighths lie half between.
function percent(right, images) {
  const value = 100 * (right / images);
  const lower = Math.floor(100 * value);
  return (8 * value) % 2 === 1 ? ((lower + (lower % 2)) / 100).toFixed(2) : value.toFixed(2);
}

// Tables: a click sorts, downwards, upwards, and as it was.

function sortable(table) {
  const body = table.tBodies[0];
  const before = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, i) => {
    const cell = row.cells[i];
    return i === 0 ? cell.textContent.trim() : cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };
  const compare = (i, sign) => (one, other) => {
    const [a, b] = [key(one, i), key(other, i)];
    if (a === null || b === null) return (a === null) - (b === null); // what is missing stays below
    return sign * (i === 0 ? a.localeCompare(b) : a - b);
  };
  heads.forEach((head, i) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const order = i === 0 ? ["ascending", "descending", "none"] : ["descending", "ascending", "none"];
      const next = order[(order.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? next : "none"));
      const rows = [...before];
      if (next !== "none") rows.sort(compare(i, next === "ascending" ? 1 : -1));
      body.append(...rows);
    });
  });
}

// The control.

function control(box) {
  const data = JSON.parse(document.getElementById("slider-data").textContent);
  const { alphas, betas, runs } = data;
  const part = (name) => box.querySelector(`[data-part="${name}"]`);
  const [rows, seeds, sets] = ["row", "seed", "set"].map(part);
  const [alpha, beta] = ["alpha", "beta"].map(part);
  const cells = [...part("map").querySelectorAll("i")]; // a line for each beta, from the highest
  const cell = (a, b) => cells[(betas.length - 1 - b) * alphas.length + a];
  const opened = new Map();
  let run;
  let set;

  const options = (select, words) =>
    select.replaceChildren(...words.map((word, i) => new Option(word, String(i), false, word === select.dataset.kept)));
  const nearest = (grid, value) =>
    grid.reduce((best, at, i) => (Math.abs(at - value) < Math.abs(grid[best] - value) ? i : best), 0);
  const open = (id) => {
    if (!opened.has(id)) {
      const found = unpack(JSON.parse(document.getElementById(id).textContent));
      found.map = grid(found, alphas, betas);
      opened.set(id, found);
    }
    return opened.get(id);
  };

  function show() {
    const [a, b] = [Number(alpha.value), Number(beta.value)];
    const right = hits(set, alphas[a], b);
    part("alpha-value").textContent = alphas[a].toFixed(2);
    part("beta-value").textContent = String(betas[b]);
    part("accuracy").textContent = percent(right, set.images);
    part("count").textContent = `${right.toLocaleString("en")} of ${set.images.toLocaleString("en")} images`;
    cells.forEach((other) => other.classList.toggle("here", other === cell(a, b)));
  }

  function draw() {
    const all = set.map.flat();
    const [low, high] = [Math.min(...all), Math.max(...all)];
    set.map.forEach((of_alpha, a) =>
      of_alpha.forEach((right, b) => {
        const at = cell(a, b);
        const share = high > low ? (right - low) / (high - low) : 1;
        at.style.setProperty("--share", `${(100 * share).toFixed(1)}%`);
        at.title = `alpha ${alphas[a].toFixed(2)}, beta ${betas[b]}: ${percent(right, set.images)} %`;
        at.replaceChildren();
      }),
    );
    part("low").textContent = `${percent(low, set.images)} %`;
    part("high").textContent = `${percent(high, set.images)} %`;
    const points = set.points.map((point) => {
      const [a, b] = [nearest(alphas, point.alpha), nearest(betas, point.beta)];
      const mark = document.createElement("b");
      mark.className = `mark ${point.source}`;
      cell(a, b).append(mark);
      const there = document.createElement("button");
      there.type = "button";
      const off = alphas[a] === point.alpha && betas[b] === point.beta ? "" : " (the nearest of the grid)";
      there.append(mark.cloneNode(), ` ${point.name}: alpha ${point.alpha}, beta ${point.beta}${off}, `);
      there.append(`${percent(set.map[a][b], set.images)}\u00a0%`);
      there.addEventListener("click", () => go(a, b));
      const line = document.createElement("li");
      line.append(there);
      return line;
    });
    part("points").replaceChildren(...points);
    const differing = set.map.flat().filter((right, i) => right !== set.hits.flat()[i]).length;
    const points_of = `${all.length} points of the grid`;
    part("check").textContent = differing
      ? `${differing} of ${points_of} DIFFER from the search in Python.`
      : `All ${points_of} agree with the search in Python.`;
    part("check").classList.toggle("alarm", differing > 0);
  }

  function go(a, b) {
    [alpha.value, beta.value] = [a, b];
    show();
  }

  function choose_set() {
    sets.dataset.kept = sets.selectedOptions[0].text;
    set = { ...open(run.sets[sets.value].id), points: run.sets[sets.value].points };
    draw();
    show();
  }

  function choose_seed() {
    seeds.dataset.kept = seeds.selectedOptions[0].text;
    run = runs[rows.value].seeds[seeds.value];
    options(sets, run.sets.map(({ name }) => name));
    choose_set();
  }

  function choose_row() {
    options(seeds, runs[rows.value].seeds.map(({ seed }) => seed));
    choose_seed();
    const own = set.points.find((point) => point.own);
    go(nearest(alphas, own.alpha), nearest(betas, own.beta));
  }

  options(rows, runs.map(({ row }) => row));
  rows.addEventListener("change", choose_row);
  seeds.addEventListener("change", choose_seed);
  sets.addEventListener("change", choose_set);
  [alpha, beta].forEach((slider) => slider.addEventListener("input", show));
  part("map").addEventListener("click", (event) => {
    const i = cells.indexOf(event.target.closest("i"));
    if (i >= 0) go(i % alphas.length, betas.length - 1 - Math.floor(i / alphas.length));
  });
  choose_row();
  box.hidden = false;
}

function start() {
  document.querySelectorAll("table").forEach(sortable);
  document.querySelectorAll("[data-control]").forEach(control);
  const toggle = document.getElementById("theme");
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  toggle.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    toggle.setAttribute("aria-pressed", String(dark()));
  });
  toggle.setAttribute("aria-pressed", String(dark()));
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((details) => (details.open = true));
  });
  addEventListener("afterprint", () => opened.forEach((details) => (details.open = false)));
}

if (typeof document === "undefined") module.exports = { unpack, grid, percent };
else start();
