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
  const player = { current: null, playing: false, context: null, source: null, element: null, start: 0, duration: 0, token: 0 };

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

  async function play(i) {
    silence();
    select(i);
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
  const toggle = (i) => (player.playing && player.current === i ? stop() : play(i));

  function select(i) {
    player.current = i;
    const loop = loops[i];
    $("dock").hidden = false;
    $("dock-error").hidden = true;
    $("dock-name").textContent = loop.name;
    $("dock-info").textContent = [loop.rank ? `rank ${loop.rank}` : "", loop.group, loop.seconds ? `${loop.whole_s.toFixed(2)} s${loop.is_cut ? `, first ${loop.seconds.toFixed(0)} s` : ""}` : ""].filter(Boolean).join(" · ");
    $("dock-wave").firstElementChild.setAttribute("d", rowOf.get(i)?.querySelector(".wave path")?.getAttribute("d") ?? loop.wave ?? "");
    const near = loop.near ?? [];
    $("dock-near").replaceChildren(...(near.length ? [document.createTextNode("Nearest normal loops:")] : []), ...near.map((j) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = loops[j].name;
      button.title = loops[j].path;
      button.addEventListener("click", () => toggle(j));
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
      const here = Number(row.dataset.i) === player.current;
      row.classList.toggle("current", here);
      row.classList.toggle("playing", here && player.playing);
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
  const marks = new Map(Object.entries(JSON.parse(store.get(data.key) ?? "{}")));
  const markOf = (i) => marks.get(loops[i].id) ?? "";
  const filters = { search: $("search"), group: $("group"), marks: $("marks"), only: $("only") };

  function filter() {
    const words = filters.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const i = Number(row.dataset.i);
      const loop = loops[i];
      const text = `${loop.path} ${loop.group}`.toLowerCase();
      const fits = words.every((word) => text.includes(word))
        && (!filters.group?.value || loop.group === filters.group.value)
        && (!filters.marks.value || (markOf(i) || "none") === filters.marks.value)
        && (!filters.only.checked || loop.is_anomaly);
      row.hidden = !fits;
      dots.get(i)?.classList.toggle("dim", !fits);
      shown += fits;
    }
    $("count").textContent = `${shown} of ${data.total} loops`;
    $("empty").hidden = shown > 0;
  }
  for (const input of Object.values(filters)) input?.addEventListener("input", filter);

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
  function setMark(i, mark) {
    if (!rowOf.has(i)) return;
    if (mark) marks.set(loops[i].id, mark);
    else marks.delete(loops[i].id);
    store.set(data.key, JSON.stringify(Object.fromEntries(marks)));
    showMark(rowOf.get(i));
  }
  rows.forEach(showMark);

  function download(name, type, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  const quote = (field) => `"${String(field ?? "").replaceAll('"', '""')}"`;
  function csv() {
    const lines = rows.map((row) => Number(row.dataset.i)).map((i) => [loops[i].id, loops[i].path, loops[i].rank, loops[i].score, loops[i].is_anomaly, markOf(i)].map(quote).join(","));
    return ["id,path,rank,score,is_anomaly,mark", ...lines].join("\r\n") + "\r\n";
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
  $("m3u").addEventListener("click", () => download("loopjax-kept.m3u8", "audio/x-mpegurl", m3u()));

  // ---- clicks, map, keys -----------------------------------------------------------------------
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.play[data-i]");
    if (button) toggle(Number(button.dataset.i));
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
    const at = visible.findIndex((row) => Number(row.dataset.i) === player.current);
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
    const mark = (name) => { setMark(player.current, name); step(1); };
    const ready = player.current !== null;
    const actions = {
      n: () => step(1),
      p: () => step(-1),
      k: ready && (() => mark("keep")),
      r: ready && (() => mark("reject")),
      u: ready && (() => setMark(player.current, "")),
      "/": () => filters.search.focus(),
      Escape: () => { stop(); $("dock").hidden = true; },
      " ": !target.matches("button, a, summary") && (() => (ready ? toggle(player.current) : step(1))),
    };
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  filter();
  // For tests and for the curious: what is playing, and the two exports as text.
  window.loopjaxReport = { state: () => ({ current: player.current, playing: player.playing, position_s: position(), duration_s: player.duration }), csv, m3u };
})();
