// Decisions. A mark belongs to a sound: it is kept under the hash of the file's content, with which
// ids of a store begin, so that it outlives other pages, new files and other names.
const keyOf = (i) => (/^[0-9a-f]{16}-/.test(data.id[i]) ? data.id[i].slice(0, 16) : data.id[i]);
const marks = new Map(hooks.marked ? [] : Object.entries(JSON.parse(storage.get("loopjax-marks") ?? "{}")));
const markOf = (i) => marks.get(keyOf(i))?.mark ?? "";
const noteOf = (i) => marks.get(keyOf(i))?.note ?? "";
const undone = []; // what the last decisions replaced, each a list

// Changes marks or notes: [[loop, {mark, note}], ...]. Returns the loops concerned.
function decide(changes, isUndo = false) {
  const before = changes.map(([i]) => [i, { mark: markOf(i), note: noteOf(i) }]);
  if (!isUndo) undone.push(before);
  for (const [i, change] of changes) {
    const now = { mark: markOf(i), note: noteOf(i), ...change };
    if (now.mark || now.note) marks.set(keyOf(i), now);
    else marks.delete(keyOf(i));
  }
  if (hooks.marked) hooks.marked(changes.map(([i]) => i));
  else storage.set("loopjax-marks", JSON.stringify(Object.fromEntries(marks)));
  return changes.map(([i]) => i);
}

function undo() {
  const last = undone.pop();
  return last ? decide([...last].reverse(), true) : [];
}

function download(name, type, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const quote = (field) => `"${String(field ?? "").replaceAll('"', '""')}"`;
function csv() {
  const lines = [["id", "path", "rank", "score", "is_anomaly", "mark", "note"].join(",")];
  for (let i = 0; i < loops.count; i += 1) {
    lines.push([data.id[i], loops.path(i), data.rank[i], data.score[i], Boolean(data.anomaly[i]), markOf(i), noteOf(i)].map(quote).join(","));
  }
  return lines.join("\r\n") + "\r\n";
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
  const known = new Map();
  for (let i = 0; i < loops.count; i += 1) for (const key of [keyOf(i), data.id[i], loops.path(i)]) known.set(key, i);
  const changes = [];
  for (const line of lines) {
    const cell = (name) => line[place[name]] ?? "";
    const i = known.get(cell("id")) ?? known.get((cell("sha256") || cell("id")).slice(0, 16)) ?? known.get(cell("path"));
    if (i !== undefined && ["keep", "reject"].includes(cell("mark"))) changes.push([i, { mark: cell("mark"), note: cell("note") }]);
  }
  if (changes.length) decide(changes);
  return changes.length;
}

// A playlist of what is kept; without any mark, of `shown` loops. One line per entry, so line breaks
// in a name are percent-encoded.
function m3u(shown) {
  const kept = [...Array(loops.count).keys()].filter((i) => markOf(i) === "keep");
  const oneLine = (text) => text.replace(/[\r\n]/g, (c) => encodeURIComponent(c));
  const entries = (kept.length ? kept : shown).map((i) => `#EXTINF:${Math.round(loops.sound(i)?.whole_s ?? -1)},${oneLine(data.name[i])}\n${oneLine(loops.file(i) ?? loops.path(i))}`);
  return ["#EXTM3U", ...entries].join("\n") + "\n";
}
