// The page: lists, filters, keys, and the player that follows the loop under judgement.
const table = $("table");
let judged = null; // the loop that marks belong to
let beside = null; // the neighbor last heard beside it
let view = "ranked";
let selection = null; // loops chosen on the map
let order = null; // column sorted by: {key, rising}; null: the list's own order

// ---- theme -----------------------------------------------------------------------------------
const THEMES = ["auto", "light", "dark"];
function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme[0].toUpperCase() + theme.slice(1);
  $("theme").setAttribute("aria-label", `${$("theme").textContent}: color theme`);
  storage.set("loopjax-theme", theme);
}
setTheme(THEMES.includes(storage.get("loopjax-theme")) ? storage.get("loopjax-theme") : "auto");
$("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "auto";
  setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
});

// ---- rows ------------------------------------------------------------------------------------
const scores = data.score.filter((score) => score !== null);
const [lowest, highest] = [Math.min(...scores.slice(-1)), Math.max(...scores.slice(0, 1))]; // ranked
const isLog = lowest > 0 && highest / lowest > 5;
const place = (score) => (isLog ? Math.log(Math.max(score, lowest)) : score);
const barOf = (score) => (highest > lowest ? 4 + 96 * Math.min(1, Math.max(0, (place(score) - place(lowest)) / (place(highest) - place(lowest)))) : 0);
const cutAt = data.threshold === null ? null : barOf(data.threshold);

function fill(row, item) {
  const { i } = item;
  const part = (selector) => row.querySelector(selector);
  const text = (selector, value) => { const found = part(selector); if (found) found.textContent = value; };
  row.dataset.i = i;
  text(".c-rank", data.rank[i]);
  text(".name", data.name[i]);
  part(".name").title = loops.path(i);
  text(".group", loops.group(i));
  text(".why", item.text ?? data.why[i] ?? "");
  part(".why").title = item.text ?? data.why[i] ?? "";
  part(".chips").replaceChildren(
    ...(data.anomaly[i] ? [make("em", { className: "chip", textContent: "anomaly" })] : []),
    ...(data.flags[i] ?? []).map((flag) => make("em", { className: "chip flag", textContent: flag })),
    ...(item.mark ? [make("em", { className: "chip flag", textContent: `proposed: ${item.mark}` })] : []),
  );
  const sound = loops.sound(i);
  part(".thumbs").hidden = !sound;
  part(".no-picture").hidden = Boolean(sound);
  if (sound) {
    part(".wave path").setAttribute("d", wavePath(sound.wave));
    part("img").src = sound.picture;
  } else hooks.hear?.(i);
  text(".c-percentile .value", data.percentile[i] === null ? "" : data.percentile[i].toFixed(1));
  text(".c-score .value", number(data.score[i], 3));
  part(".bar i").style.width = `${barOf(data.score[i])}%`;
  part(".bar i").className = data.anomaly[i] ? "anomalous" : "";
  part(".bar b").hidden = cutAt === null;
  part(".bar b").style.left = `${cutAt}%`;
  text(".c-p", data.p ? number(data.p[i], 2) : "");
  text(".c-label", data.label?.[i] === undefined || data.label[i] === null ? "" : data.label[i] ? "anomaly" : "normal");
  const button = part(".play");
  button.dataset.i = i;
  button.disabled = !loops.audio(i);
  button.title = button.disabled ? "No audio for this loop" : "";
  button.setAttribute("aria-label", `Play ${data.name[i]}`);
  part(".c-mark span").setAttribute("aria-label", `Mark ${data.name[i]}`);
  paintRow(row);
}

function paintRow(row) {
  const i = Number(row.dataset.i), mark = markOf(i);
  row.classList.toggle("current", i === judged);
  row.classList.toggle("playing", i === player.heard && player.playing);
  row.classList.toggle("rejected", mark === "reject");
  for (const button of row.querySelectorAll(".mark")) button.setAttribute("aria-pressed", String(button.dataset.mark === mark));
  row.querySelector(".play").setAttribute("aria-pressed", String(player.playing && i === player.heard));
}

const list = new LongList(table, table.querySelector(".rows"), $("row"), fill);
const shown = () => list.items.map((item) => item.i);
const placeOf = (i) => list.items.findIndex((item) => item.i === i);

// ---- which loops, in which order ---------------------------------------------------------------
const filters = { search: $("search"), group: $("group"), marks: $("marks"), only: $("only") };
const everything = [...data.rank.keys()].sort((a, b) => data.rank[a] - data.rank[b]).map((i) => ({ i }));
const items = { ranked: everything, duplicates: data.duplicates, mislabelled: data.mislabelled };
const searched = everything.length ? data.name.map((_, i) => `${loops.path(i)} ${loops.group(i)} ${data.why[i] ?? ""}`.toLowerCase()) : [];
const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
const COLUMNS = {
  rank: (i) => data.rank[i], name: (i) => data.name[i], percentile: (i) => data.percentile[i], score: (i) => data.score[i],
  p: (i) => data.p[i], label: (i) => data.label[i], mark: (i) => ({ keep: 0, reject: 1 })[markOf(i)] ?? 2,
};
const FALLING_FIRST = ["score", "percentile", "label"];

function fitting() {
  const words = filters.search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const group = filters.group?.value ?? "", mark = filters.marks.value, only = filters.only.checked;
  return (i) => words.every((word) => searched[i].includes(word))
    && (!group || loops.group(i) === group)
    && (!mark || (markOf(i) || "none") === mark)
    && (!only || data.anomaly[i] === 1)
    && (!selection || selection.has(i));
}

function refresh() {
  const fits = fitting();
  let found = items[view].filter((item) => fits(item.i));
  if (order) {
    const value = COLUMNS[order.key], sign = order.rising ? 1 : -1;
    found = found.map((item) => [value(item.i), item]).sort(([x], [y]) => {
      if (x === null || y === null) return (x === null) - (y === null); // unknown values last
      return sign * (typeof x === "string" ? collator.compare(x, y) : x - y);
    }).map(([, item]) => item);
  }
  list.show(found);
  const total = view === "ranked" ? data.total : items[view].length;
  $("count").textContent = `${found.length} of ${total}\u00a0loops`;
  $("empty").hidden = found.length > 0;
  $("selected").hidden = !selection;
  $("selected").textContent = selection ? `${selection.size}\u00a0loops chosen on the map: show all` : "";
  map?.dim(fits);
}
for (const input of Object.values(filters)) input?.addEventListener("input", () => { table.scrollTop = 0; refresh(); });
$("selected").addEventListener("click", () => { selection = null; refresh(); });

for (const head of document.querySelectorAll("[data-sort]")) {
  head.querySelector("button").addEventListener("click", () => {
    const key = head.dataset.sort, before = head.getAttribute("aria-sort");
    order = { key, rising: before ? before !== "ascending" : !FALLING_FIRST.includes(key) };
    for (const other of document.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order.rising ? "ascending" : "descending");
    refresh();
  });
}

const tabs = [...document.querySelectorAll("[role=tab]")];
function open(tab) {
  for (const other of tabs) {
    other.setAttribute("aria-selected", String(other === tab));
    other.tabIndex = other === tab ? 0 : -1;
  }
  const key = tab.dataset.tab;
  $("list").hidden = key === "rejected";
  $("list").setAttribute("aria-labelledby", tab.id);
  if ($("rejected")) $("rejected").hidden = key !== "rejected";
  if (key === "rejected") return;
  view = key;
  order = null;
  for (const head of document.querySelectorAll("[aria-sort]")) head.removeAttribute("aria-sort");
  if (view === "ranked") document.querySelector("[data-sort=rank]").setAttribute("aria-sort", "ascending");
  $("propose").hidden = view !== "duplicates";
  table.scrollTop = 0;
  refresh();
}
for (const tab of tabs) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const next = tabs[(tabs.indexOf(tab) + by + tabs.length) % tabs.length];
    open(next);
    next.focus();
  });
}

// ---- player ----------------------------------------------------------------------------------
// A neighbor is heard beside the loop under judgement, which stays the one that marks belong to.
function play(i, isAside = false, at_s = 0) {
  if (!isAside || judged === null) {
    if (i !== judged) beside = null;
    judged = i;
    hooks.near?.(i);
  } else if (i !== judged) beside = i;
  fail("");
  const done = playFrom(i, at_s, fail);
  showDock();
  return done;
}
function fail(why) {
  $("dock-error").textContent = why;
  $("dock-error").hidden = !why;
}
const toggle = (i, isAside = false) => (player.playing && player.heard === i ? stop() : play(i, isAside));

// The loop itself (A) and a neighbor (B), each from where the other was.
function compare(isLoop) {
  if (judged === null) return;
  const other = beside ?? loops.near(judged)[0];
  const next = isLoop ? judged : other;
  if (next !== undefined) play(next, true, position());
}

// The page leaves as much room below as the player takes.
const makeRoom = () => document.documentElement.style.setProperty("--dock", `${$("dock").offsetHeight}px`);
new ResizeObserver(makeRoom).observe($("dock"));

function showDock() {
  const i = player.heard, sound = loops.sound(i), near = loops.near(judged);
  $("dock").hidden = false;
  $("dock-name").textContent = data.name[i];
  const length = sound ? `${sound.whole_s.toFixed(2)}\u00a0s${sound.cut ? `, first ${sound.seconds.toFixed(0)}\u00a0s` : ""}` : "";
  const percentile = data.percentile[i] === null ? "" : `percentile ${data.percentile[i].toFixed(1)}`;
  $("dock-info").textContent = [judged === i ? "" : `beside ${data.name[judged]}`, `rank ${data.rank[i]}`, percentile, loops.group(i), length, data.why[i] ?? ""].filter(Boolean).join(" · ");
  $("scrub").hidden = !sound;
  if (sound) {
    $("dock-wave").firstElementChild.setAttribute("d", wavePath(sound.wave));
    $("dock-picture").src = sound.picture;
    [...$("seconds").children].forEach((tick, k, all) => { tick.textContent = `${short((sound.seconds * k) / (all.length - 1), 2)}\u00a0s`; });
  }
  $("note").value = noteOf(judged);
  const choice = (key, j, text) => make("button", { type: "button", title: loops.path(j), ariaPressed: String(j === i), onclick: () => toggle(j, true) }, make("kbd", { textContent: key }), ` ${text}`);
  $("dock-near").replaceChildren(
    ...(near.length ? [choice("A", judged, "this loop"), make("span", { textContent: "nearest normal:" })] : []),
    ...near.map((j, k) => choice(k + 1, j, data.name[j])),
  );
  map?.point(i, near);
  player.changed();
  makeRoom();
}

player.changed = () => {
  list.rows.forEach((row) => { if (!row.hidden && row.place >= 0) paintRow(row); });
  for (const button of document.querySelectorAll("button.play[data-aside]")) button.setAttribute("aria-pressed", String(player.playing && Number(button.dataset.i) === player.heard));
  const dock = $("dock-play");
  dock.setAttribute("aria-pressed", String(player.playing));
  dock.setAttribute("aria-label", player.playing ? "Stop" : "Play");
  dock.disabled = player.heard !== null && !loops.audio(player.heard);
  $("dock").classList.toggle("playing", player.playing);
  if (player.playing) requestAnimationFrame(tick);
};

function tick() {
  if (!player.playing) return;
  const percent = player.duration ? (100 * position()) / player.duration : 0;
  for (const line of document.querySelectorAll(".playing .head-line")) line.style.left = `${percent}%`;
  $("scrub").setAttribute("aria-valuenow", Math.round(percent));
  $("scrub").setAttribute("aria-valuetext", `${position().toFixed(1)} s`);
  tick.next ??= requestAnimationFrame(() => { tick.next = null; tick(); });
}

function seek(i, fraction, isAside) {
  const seconds = loops.sound(i)?.seconds ?? player.duration;
  play(i, isAside, Math.min(Math.max(fraction, 0), 0.999) * seconds);
}
const fractionOf = (event, element) => { const box = element.getBoundingClientRect(); return (event.clientX - box.left) / box.width; };
$("scrub").addEventListener("click", (event) => seek(player.heard, fractionOf(event, $("dock-wave")), true));
$("scrub").addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -0.05, ArrowRight: 0.05 }[event.key];
  if (!by) return;
  event.preventDefault();
  seek(player.heard, (position() / (player.duration || 1) + by + 1) % 1, true);
});
const [lowestOctave, highestOctave] = data.hz.map(Math.log2);
for (const line of $("hertz").children) {
  const hz = Number(line.dataset.hz);
  line.textContent = hertz(hz);
  line.style.bottom = `${(100 * (Math.log2(hz) - lowestOctave)) / (highestOctave - lowestOctave)}%`;
}

// Scrolls the list, and the page with it, until the row at a place can be seen.
function reveal(place) {
  list.reveal(place);
  list.rows.find((row) => row.place === place)?.scrollIntoView({ block: "nearest" });
}

// Of a loop chosen elsewhere on the page.
function choose(i) {
  if (placeOf(i) >= 0) list.reveal(placeOf(i));
  toggle(i);
}

function step(by) {
  if (!list.items.length) return;
  const at = placeOf(judged), next = at < 0 ? 0 : (at + by + list.items.length) % list.items.length;
  play(list.items[next].i);
  reveal(next);
}

$("dock-play").addEventListener("click", () => toggle(player.heard, true));
$("dock-close").addEventListener("click", () => { stop(); $("dock").hidden = true; });
$("next").addEventListener("click", () => step(1));
$("prev").addEventListener("click", () => step(-1));

// ---- marks -----------------------------------------------------------------------------------
function mark(changes, isUndo) {
  const touched = isUndo ? undo() : decide(changes);
  if (filters.marks.value || order?.key === "mark") refresh();
  else player.changed();
  return touched;
}
$("note").addEventListener("change", () => mark([[judged, { note: $("note").value }]]));
$("propose").addEventListener("click", () => {
  const open = list.items.filter((item) => item.mark && !markOf(item.i));
  if (open.length) mark(open.map((item) => [item.i, { mark: item.mark }]));
});
$("csv").addEventListener("click", () => download("loopjax-marks.csv", "text/csv", csv()));
$("m3u").addEventListener("click", () => download("loopjax-kept.m3u8", "audio/x-mpegurl", m3u(shown())));
$("import").addEventListener("click", () => $("import-file").click());
$("import-file").addEventListener("change", async () => {
  const [file] = $("import-file").files;
  if (!file) return;
  try {
    $("import-result").textContent = `${importMarks(textOf(await file.arrayBuffer()))} marks imported from ${file.name}`;
    refresh();
  } catch (error) {
    $("import-result").textContent = `${file.name}: ${error.message}`;
  }
  $("import-file").value = "";
});

// ---- map, clicks, keys -------------------------------------------------------------------------
const map = $("plane") && makeMap({
  activate: choose,
  selected(chosen) { selection = chosen.size ? chosen : null; table.scrollTop = 0; refresh(); },
  chooseGroup(group) { filters.group.value = filters.group.value === group ? "" : group; table.scrollTop = 0; refresh(); },
});

$("typical")?.replaceChildren(...data.typical.map((i) => {
  const button = $("row").content.querySelector(".play").cloneNode(true);
  Object.assign(button.dataset, { i, aside: "" });
  button.disabled = !loops.audio(i);
  button.setAttribute("aria-label", `Play ${data.name[i]}`);
  return make("li", {}, button, make("span", {}, make("span", { className: "name", textContent: data.name[i] }), make("span", { className: "under", textContent: loops.group(i) })));
}));

document.addEventListener("click", (event) => {
  const row = event.target.closest(".rows > *"), button = event.target.closest("button");
  if (button?.matches(".play[data-i]")) toggle(Number(button.dataset.i), "aside" in button.dataset);
  if (!row) return;
  const i = Number(row.dataset.i), thumbs = event.target.closest(".thumbs");
  if (button?.matches(".mark")) mark([[i, { mark: markOf(i) === button.dataset.mark ? "" : button.dataset.mark }]]);
  if (thumbs && loops.audio(i)) seek(i, fractionOf(event, thumbs), false);
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { target } = event;
  if (target.matches("input, select, textarea")) {
    if (event.key === "Escape") target.blur();
    return;
  }
  const ready = judged !== null, near = ready ? loops.near(judged) : [];
  const judge = (name) => { mark([[judged, { mark: name }]]); step(1); };
  const actions = {
    n: () => step(1),
    p: () => step(-1),
    k: ready && (() => judge("keep")),
    r: ready && (() => judge("reject")),
    u: ready && (() => mark([[judged, { mark: "" }]])),
    z: undone.length > 0 && (() => {
      const [i] = mark([], true);
      judged = i;
      if (player.heard === null) player.heard = i;
      showDock();
      if (placeOf(i) >= 0) reveal(placeOf(i));
    }),
    a: ready && (() => compare(true)),
    b: near.length > 0 && (() => compare(false)),
    ...Object.fromEntries(near.map((j, k) => [String(k + 1), () => toggle(j, true)])),
    "/": () => filters.search.focus(),
    Escape: () => { stop(); $("dock").hidden = true; },
    " ": !target.matches("button, a, summary, [role=tab]") && (() => (ready ? toggle(judged) : step(1))),
  };
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

refresh();
hooks.start?.();
// For tests and for the curious: what is playing, what is listed, and the two exports as text.
window.loopjaxReport = {
  state: () => ({ heard: player.heard, judged, playing: player.playing, position_s: position(), duration_s: player.duration, gapless: Boolean(player.source), unsaved: hooks.unsaved?.() ?? false }),
  names: () => shown().map((i) => data.name[i]),
  list, csv, m3u: () => m3u(shown()), importMarks,
};
