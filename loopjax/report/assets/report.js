"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const loops = data.loops; // every loop this page knows: ranked rows, typical ones, neighbors, map points
  const body = document.querySelector(".ranked tbody");
  const rows = [...body.rows];
  const rowOf = new Map(rows.map((row) => [Number(row.dataset.i), row]));
  const dots = new Map([...document.querySelectorAll("#plane circle")].map((dot) => [Number(dot.dataset.i), dot]));

  // Settings and marks live in this browser only; a page opened from a file may be denied storage.
  const memory = new Map();
  const store = {
    get(key) {
      try { return localStorage.getItem(key); } catch { return memory.get(key) ?? null; }
    },
    set(key, value) {
      try { localStorage.setItem(key, value); } catch { memory.set(key, value); }
    },
  };

  // ---- theme -------------------------------------------------------------------------------
  const themes = ["auto", "light", "dark"];
  function setTheme(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    $("theme").textContent = theme[0].toUpperCase() + theme.slice(1);
    $("theme").setAttribute("aria-label", `Color theme: ${theme === "auto" ? "automatic" : theme}`);
    store.set("loopjax-theme", theme);
  }
  setTheme(themes.includes(store.get("loopjax-theme")) ? store.get("loopjax-theme") : "auto");
  $("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "auto";
    setTheme(themes[(themes.indexOf(now) + 1) % themes.length]);
  });

  // ---- player ------------------------------------------------------------------------------
  // Embedded previews go through Web Audio, which closes a loop without a gap; linked files through
  // a media element, because a page opened from disk may not read other files itself.
  const player = { current: null, judged: null, playing: false, context: null, source: null, element: null, start: 0, duration: 0, token: 0 };

  function silence() {
    player.token += 1;
    if (player.source) { player.source.stop(); player.source.disconnect(); player.source = null; }
    if (player.element) { player.element.pause(); player.element.removeAttribute("src"); player.element = null; }
    player.playing = false;
  }

  function position() {
    if (!player.playing) return 0;
    if (player.element) return player.element.currentTime;
    return player.duration ? (player.context.currentTime - player.start) % player.duration : 0;
  }

  async function startEmbedded(i, token) {
    const bytes = Uint8Array.from(atob($(`audio-${i}`).textContent), (c) => c.charCodeAt(0));
    player.context ??= new AudioContext();
    await player.context.resume();
    const buffer = await player.context.decodeAudioData(bytes.buffer);
    if (token !== player.token) return;
    const source = player.context.createBufferSource();
    source.buffer = buffer;
    source.loop = true;
    source.loopEnd = Math.min(buffer.duration, loops[i].seconds || buffer.duration);
    source.connect(player.context.destination);
    source.start();
    player.source = source;
    player.start = player.context.currentTime;
    player.duration = source.loopEnd;
  }

  async function startLinked(i, token) {
    const element = new Audio(loops[i].href);
    element.loop = true;
    await element.play();
    if (token !== player.token) { element.pause(); return; }
    player.element = element;
    player.duration = element.duration;
  }

  // A neighbor is heard beside the loop under judgement, which stays the one that marks belong to.
  async function play(i, isAside = false) {
    silence();
    select(i, isAside);
    const loop = loops[i];
    if (!loop.audio) return;
    const token = player.token;
    try {
      await (loop.audio === "embed" ? startEmbedded(i, token) : startLinked(i, token));
      if (token !== player.token) return;
      player.playing = true;
      requestAnimationFrame(tick);
    } catch (error) {
      if (token !== player.token) return;
      $("dock-error").textContent = `This browser cannot play ${loop.name}: ${error.message}`;
      $("dock-error").hidden = false;
    }
    paint();
  }

  function stop() { silence(); paint(); }
  const toggle = (i, isAside = false) => (player.playing && player.current === i ? stop() : play(i, isAside));

  function select(i, isAside) {
    player.current = i;
    if (!isAside || player.judged === null) player.judged = i;
    const loop = loops[i];
    const judged = loops[player.judged];
    $("dock").hidden = false;
    $("dock-error").hidden = true;
    $("dock-name").textContent = loop.name;
    $("dock-info").textContent = [judged === loop ? "" : `beside ${judged.name}`, loop.rank ? `rank ${loop.rank}` : "", loop.group, loop.seconds ? `${loop.whole_s.toFixed(2)} s${loop.is_cut ? `, first ${loop.seconds.toFixed(0)} s` : ""}` : ""].filter(Boolean).join(" · ");
    $("dock-wave").firstElementChild.setAttribute("d", rowOf.get(i)?.querySelector(".wave path")?.getAttribute("d") ?? loop.wave ?? "");
    $("note").value = noteOf(player.judged);
    $("note").disabled = false;
    const near = judged.near ?? [];
    $("dock-near").replaceChildren(...(near.length ? [document.createTextNode("Nearest normal loops:")] : []), ...near.map((j, k) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `${k + 1} ${loops[j].name}`;
      button.title = loops[j].path;
      button.setAttribute("aria-pressed", String(j === i));
      button.addEventListener("click", () => toggle(j, true));
      return button;
    }));
    for (const dot of dots.values()) dot.classList.remove("current", "near");
    for (const j of near) dots.get(j)?.classList.add("near");
    const dot = dots.get(i);
    if (dot) { dot.classList.add("current"); dot.parentNode.append(dot); }
    paint();
  }

  function paint() {
    for (const button of document.querySelectorAll("button.play[data-i]")) {
      const on = player.playing && Number(button.dataset.i) === player.current;
      if ((button.getAttribute("aria-pressed") === "true") !== on) button.setAttribute("aria-pressed", String(on));
    }
    for (const row of rows) {
      const i = Number(row.dataset.i);
      row.classList.toggle("current", i === player.judged);
      row.classList.toggle("playing", i === player.current && player.playing);
    }
    const dock = $("dock-play");
    dock.setAttribute("aria-pressed", String(player.playing));
    dock.setAttribute("aria-label", player.playing ? "Stop" : "Play");
    dock.disabled = player.current !== null && !loops[player.current].audio;
    $("dock").classList.toggle("playing", player.playing);
  }

  function tick() {
    if (!player.playing) return;
    const percent = player.duration ? (100 * position()) / player.duration : 0;
    for (const line of document.querySelectorAll(".playing .head-line")) line.style.left = `${percent}%`;
    requestAnimationFrame(tick);
  }

  // ---- filter and sort -----------------------------------------------------------------------
  // A mark belongs to a sound: it is kept under the hash of the file's content, with which ids of a
  // store begin, so that it outlives other pages, new files and other names.
  const keyOf = (i) => (/^[0-9a-f]{16}-/.test(loops[i].id) ? loops[i].id.slice(0, 16) : `${data.key}:${loops[i].id}`);
  const marks = new Map(Object.entries(JSON.parse(store.get("loopjax-marks") ?? "{}")));
  const markOf = (i) => marks.get(keyOf(i))?.mark ?? "";
  const noteOf = (i) => marks.get(keyOf(i))?.note ?? "";
  const undone = []; // what the last decisions replaced
  const filters = { search: $("search"), group: $("group"), marks: $("marks"), only: $("only") };

  const number = (value, digits) => (value === null || value === undefined ? "" : String(Number(value.toPrecision(digits))));

  // A row for a loop that the page was not written with: all that the table shows but pictures.
  function addRow(i) {
    const loop = loops[i];
    const row = rows[0].cloneNode(true);
    row.id = `r${i}`;
    row.dataset.i = i;
    row.className = "";
    const text = (selector, value) => { const found = row.querySelector(selector); if (found) found.textContent = value; };
    text(".c-rank", loop.rank);
    text(".name", loop.name);
    row.querySelector(".name").title = loop.path;
    const chip = (words, kind) => Object.assign(document.createElement("em"), { className: kind, textContent: words });
    row.querySelector(".under").replaceChildren(
      ...(loop.is_anomaly ? [chip("anomaly", "chip")] : []),
      ...loop.flags.map((flag) => chip(flag, "chip flag")),
      Object.assign(document.createElement("span"), { className: "group", textContent: loop.group }),
    );
    row.querySelector(".c-thumb").replaceChildren();
    text(".c-score .value", number(loop.score, 3));
    row.querySelector(".c-score .bar").hidden = true;
    text(".c-percentile", loop.percentile === null ? "" : loop.percentile.toFixed(1));
    text(".c-p", number(loop.p, 2));
    text(".c-label", loop.label === null ? "" : loop.label ? "anomaly" : "normal");
    const button = row.querySelector(".play");
    button.dataset.i = i;
    button.disabled = !loop.audio;
    button.setAttribute("aria-label", `Play ${loop.name}`);
    row.querySelector(".c-mark span").setAttribute("aria-label", `Mark ${loop.name}`);
    rows.push(row);
    rowOf.set(i, row);
    body.append(row);
    showMark(row);
  }

  const AT_ONCE = 100; // rows added by a filter, and by each click on "Show more"
  function filter(extra = 0) {
    const words = filters.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const isFiltered = words.length > 0 || filters.group?.value || filters.marks.value || filters.only.checked;
    let shown = 0, fitting = 0, room = extra + (isFiltered ? AT_ONCE : 0);
    for (const i of byRank) {
      const loop = loops[i];
      const text = `${loop.path} ${loop.group}`.toLowerCase();
      const fits = words.every((word) => text.includes(word))
        && (!filters.group?.value || loop.group === filters.group.value)
        && (!filters.marks.value || (markOf(i) || "none") === filters.marks.value)
        && (!filters.only.checked || loop.is_anomaly);
      dots.get(i)?.classList.toggle("dim", !fits);
      fitting += fits;
      if (fits && !rowOf.has(i) && room > 0) { addRow(i); room -= 1; }
      const row = rowOf.get(i);
      if (row) row.hidden = !fits;
      shown += fits && row !== undefined;
    }
    $("count").textContent = `${shown} of ${data.total} loops`;
    $("empty").hidden = fitting > 0;
    $("more").hidden = shown === fitting;
    $("more-text").textContent = `${fitting - shown} more ${isFiltered ? "fit these filters" : "are less anomalous"}`;
  }
  const byRank = [...loops.keys()].sort((a, b) => loops[a].rank - loops[b].rank);
  $("more-button").addEventListener("click", () => filter(AT_ONCE));
  for (const input of Object.values(filters)) input?.addEventListener("input", () => filter());

  const order = { rank: "rank", name: "name", score: "score", percentile: "percentile", p: "p", label: "label", mark: "mark" };
  const value = (i, key) => (key === "mark" ? { keep: 0, reject: 1 }[markOf(i)] ?? 2 : loops[i][order[key]]);
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  function sort(head) {
    const key = head.dataset.sort;
    const falls = ["score", "percentile", "label"].includes(key);
    const before = head.getAttribute("aria-sort");
    const ascending = before ? before !== "ascending" : !falls;
    for (const other of document.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    rows.sort((a, b) => {
      const [x, y] = [value(Number(a.dataset.i), key), value(Number(b.dataset.i), key)];
      if (x === null || y === null) return (x === null) - (y === null); // unknown values last
      return (ascending ? 1 : -1) * (typeof x === "string" ? collator.compare(x, y) : x - y);
    });
    body.append(...rows);
  }
  for (const head of document.querySelectorAll("[data-sort]")) head.querySelector("button").addEventListener("click", () => sort(head));

  // ---- marks -----------------------------------------------------------------------------------
  function showMark(row) {
    const mark = markOf(Number(row.dataset.i));
    row.classList.toggle("rejected", mark === "reject");
    for (const button of row.querySelectorAll(".mark")) button.setAttribute("aria-pressed", String(button.dataset.mark === mark));
  }
  function decide(i, change, isUndo = false) {
    const key = keyOf(i);
    const before = marks.get(key) ?? { mark: "", note: "" };
    if (!isUndo) undone.push([i, before]);
    const now = { ...before, ...change };
    if (now.mark || now.note) marks.set(key, now);
    else marks.delete(key);
    store.set("loopjax-marks", JSON.stringify(Object.fromEntries(marks)));
    for (const row of rows) if (keyOf(Number(row.dataset.i)) === key) showMark(row);
  }
  const setMark = (i, mark) => decide(i, { mark });
  function undo() {
    const last = undone.pop();
    if (!last) return;
    decide(...last, true);
    select(last[0], false);
  }
  $("note").addEventListener("change", () => decide(player.judged, { note: $("note").value }));
  rows.forEach(showMark);

  function download(name, type, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  const quote = (field) => `"${String(field ?? "").replaceAll('"', '""')}"`;
  // Listed loops and all others that are marked.
  const exported = () => [...rows.map((row) => Number(row.dataset.i)), ...[...loops.keys()].filter((i) => !rowOf.has(i) && (markOf(i) || noteOf(i)))];
  function csv() {
    const lines = exported().map((i) => [loops[i].id, loops[i].path, loops[i].rank, loops[i].score, loops[i].is_anomaly, markOf(i), noteOf(i)].map(quote).join(","));
    return ["id,path,rank,score,is_anomaly,mark,note", ...lines].join("\r\n") + "\r\n";
  }
  function cells(text) {
    const table = [[""]];
    let isQuoted = false;
    for (let at = 0; at < text.length; at += 1) {
      const char = text[at], line = table[table.length - 1];
      if (isQuoted && char === '"' && text[at + 1] === '"') { line[line.length - 1] += '"'; at += 1; }
      else if (char === '"') isQuoted = !isQuoted;
      else if (!isQuoted && char === ",") line.push("");
      else if (!isQuoted && char === "\n") table.push([""]);
      else if (isQuoted || char !== "\r") line[line.length - 1] += char;
    }
    return table;
  }
  // Marks of another page or of `loopjax dedup`; returns how many loops of this page they decide.
  function importMarks(text) {
    const [head, ...lines] = cells(text.replace(/^\ufeff/, ""));
    const place = Object.fromEntries(head.map((name, at) => [name.trim(), at]));
    if (place.mark === undefined) throw new Error("the file has no column 'mark'");
    const byKey = new Map(loops.flatMap((loop, i) => [[keyOf(i), i], [loop.id, i], [loop.path, i]]));
    let count = 0;
    for (const line of lines) {
      const cell = (name) => line[place[name]] ?? "";
      const i = byKey.get(cell("id")) ?? byKey.get((cell("sha256") || cell("id")).slice(0, 16)) ?? byKey.get(cell("path"));
      if (i === undefined || !["keep", "reject"].includes(cell("mark"))) continue;
      decide(i, { mark: cell("mark"), note: cell("note") });
      count += 1;
    }
    filter();
    return count;
  }
  // A playlist of what is kept; without any mark, of what is shown. One line per entry, so line
  // breaks in a name are percent-encoded.
  function m3u() {
    const visible = rows.filter((row) => !row.hidden).map((row) => Number(row.dataset.i));
    const kept = rows.map((row) => Number(row.dataset.i)).filter((i) => markOf(i) === "keep");
    const oneLine = (text) => text.replace(/[\r\n]/g, (c) => encodeURIComponent(c));
    const entries = (kept.length ? kept : visible).map((i) => `#EXTINF:${Math.round(loops[i].whole_s ?? -1)},${oneLine(loops[i].name)}\n${oneLine(loops[i].file ?? loops[i].path)}`);
    return ["#EXTM3U", ...entries].join("\n") + "\n";
  }
  $("csv").addEventListener("click", () => download("loopjax-marks.csv", "text/csv", csv()));
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", async () => {
    const [file] = $("import-file").files;
    if (!file) return;
    try {
      $("import-result").textContent = `${importMarks(await file.text())} marks imported from ${file.name}`;
    } catch (error) {
      $("import-result").textContent = `${file.name}: ${error.message}`;
    }
    $("import-file").value = "";
  });
  $("m3u").addEventListener("click", () => download("loopjax-kept.m3u8", "audio/x-mpegurl", m3u()));

  // ---- clicks, map, keys -----------------------------------------------------------------------
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.play[data-i]");
    if (button) toggle(Number(button.dataset.i), !rowOf.has(Number(button.dataset.i)));
    const mark = event.target.closest("button.mark");
    if (mark) {
      const i = Number(mark.closest("tr").dataset.i);
      setMark(i, markOf(i) === mark.dataset.mark ? "" : mark.dataset.mark);
    }
  });
  $("dock-play").addEventListener("click", () => toggle(player.current));
  $("dock-close").addEventListener("click", () => { stop(); $("dock").hidden = true; });
  $("next").addEventListener("click", () => step(1));
  $("prev").addEventListener("click", () => step(-1));

  function step(by) {
    const visible = rows.filter((row) => !row.hidden);
    if (!visible.length) return;
    const at = visible.findIndex((row) => Number(row.dataset.i) === player.judged);
    const row = visible[at < 0 ? 0 : (at + by + visible.length) % visible.length];
    row.scrollIntoView({ block: "nearest" });
    play(Number(row.dataset.i));
  }

  const plane = $("plane");
  if (plane) {
    const tip = $("tip");
    plane.addEventListener("pointermove", (event) => {
      const dot = event.target.closest("circle");
      tip.hidden = !dot;
      if (!dot) return;
      const loop = loops[Number(dot.dataset.i)];
      tip.textContent = `${loop.name}${loop.rank ? `, rank ${loop.rank}` : ""}, ${loop.group}`;
      const box = plane.getBoundingClientRect();
      const x = event.clientX - box.left, y = event.clientY - box.top;
      tip.style.left = `${Math.max(0, Math.min(x + 12, box.width - tip.offsetWidth))}px`;
      tip.style.top = `${y + 14}px`;
    });
    plane.addEventListener("pointerleave", () => { tip.hidden = true; });
    plane.addEventListener("click", (event) => {
      const dot = event.target.closest("circle");
      if (!dot) return;
      const i = Number(dot.dataset.i);
      rowOf.get(i)?.scrollIntoView({ block: "center" });
      toggle(i);
    });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    if (target.matches("input, select, textarea")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    const mark = (name) => { setMark(player.judged, name); step(1); };
    const ready = player.judged !== null;
    const near = ready ? loops[player.judged].near ?? [] : [];
    const actions = {
      n: () => step(1),
      p: () => step(-1),
      k: ready && (() => mark("keep")),
      r: ready && (() => mark("reject")),
      u: ready && (() => setMark(player.judged, "")),
      z: undone.length > 0 && undo,
      ...Object.fromEntries(near.map((j, k) => [String(k + 1), () => toggle(j, true)])),
      "/": () => filters.search.focus(),
      Escape: () => { stop(); $("dock").hidden = true; },
      " ": !target.matches("button, a, summary") && (() => (ready ? toggle(player.judged) : step(1))),
    };
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  filter();
  // For tests and for the curious: what is playing, and the two exports as text.
  window.loopjaxReport = { state: () => ({ current: player.current, judged: player.judged, playing: player.playing, position_s: position(), duration_s: player.duration }), csv, m3u, importMarks };
})();
