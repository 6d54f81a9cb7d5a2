// Decisions. A mark belongs to a sound: it is kept under the hash of the file's content, with which
// ids of a store begin, so that it outlives other pages, new files and other names. Files of equal
// content on one page, of which one may be kept and one rejected, have marks under their whole ids.
const contents = data.id.map((id) => (/^[0-9a-f]{16}-/.test(id) ? id.slice(0, 16) : id));
const counts = new Map();
for (const content of contents) counts.set(content, (counts.get(content) ?? 0) + 1);
const keyOf = (i) => (counts.get(contents[i]) === 1 ? contents[i] : data.id[i]);
const marks = new Map(hooks.marked ? [] : Object.entries(JSON.parse(storage.get("loopjax-marks") ?? "{}")));
const decided = (i) => marks.get(keyOf(i)) ?? marks.get(contents[i]) ?? marks.get(data.id[i]) ?? { mark: "", note: "" };
const markOf = (i) => decided(i).mark;
const noteOf = (i) => decided(i).note;
const undone = []; // what the last decisions replaced, each a list

// Changes marks or notes: [[loop, {mark, note}], ...]. Returns the loops concerned.
function decide(changes, isUndo = false) {
  if (!isUndo) undone.push(changes.map(([i, change]) => [i, Object.fromEntries(Object.keys(change).map((name) => [name, decided(i)[name]]))]));
  for (const [i, change] of changes) {
    const now = { ...decided(i), ...change };
    // Without a mark nothing is kept, unless that would bring back what another page wrote.
    marks.delete(keyOf(i));
    const { mark, note } = decided(i);
    if (now.mark || now.note || mark || note) marks.set(keyOf(i), now);
  }
  if (hooks.marked) hooks.marked(changes);
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

// As in all our CSV files, an apostrophe keeps spreadsheets from computing a text.
const guarded = (text) => (/^[=+\-@\t\r]/.test(text) ? `'${text}` : text);
const plain = (text) => (/^'[=+\-@\t\r]/.test(text) ? text.slice(1) : text);
const quote = (field) => `"${String(field ?? "").replaceAll('"', '""')}"`;
function csv() {
  const lines = [["id", "path", "rank", "score", "is_anomaly", "mark", "note"].join(",")];
  for (let i = 0; i < loops.count; i += 1) {
    lines.push([data.id[i], guarded(loops.path(i)), data.rank[i], data.score[i], Boolean(data.anomaly[i]), markOf(i), guarded(noteOf(i))].map(quote).join(","));
  }
  return lines.join("\r\n") + "\r\n";
}

// Spreadsheets write UTF-16 too, and other separators.
function textOf(buffer) {
  const [first, second] = new Uint8Array(buffer);
  const encoding = first === 0xff && second === 0xfe ? "utf-16le" : first === 0xfe && second === 0xff ? "utf-16be" : "utf-8";
  return new TextDecoder(encoding).decode(buffer);
}
function cells(text) {
  const [head] = text.split("\n", 1);
  const separator = [",", ";", "\t"].sort((a, b) => head.split(b).length - head.split(a).length)[0];
  const table = [[""]];
  let isQuoted = false;
  for (let at = 0; at < text.length; at += 1) {
    const char = text[at], line = table[table.length - 1];
    if (isQuoted && char === '"' && text[at + 1] === '"') { line[line.length - 1] += '"'; at += 1; }
    else if (char === '"') isQuoted = !isQuoted;
    else if (!isQuoted && char === separator) line.push("");
    else if (!isQuoted && char === "\n") table.push([""]);
    else if (isQuoted || char !== "\r") line[line.length - 1] += char;
  }
  return table;
}

// Marks of another page or of `loopjax dedup`; returns how many loops of this page they decide.
const WORDS = { keep: "keep", kept: "keep", reject: "reject", rejected: "reject" };
function importMarks(text) {
  const [head, ...lines] = cells(text.replace(/^\ufeff/, ""));
  const place = Object.fromEntries(head.map((name, at) => [name.trim().toLowerCase(), at]));
  if (place.mark === undefined) throw new Error("the file has no column 'mark'");
  const known = new Map();
  for (let i = 0; i < loops.count; i += 1) for (const key of [contents[i], data.id[i], loops.path(i)]) known.set(key, i);
  const changes = [];
  for (const line of lines) {
    const cell = (name) => line[place[name]] ?? "";
    const i = known.get(cell("id")) ?? known.get((cell("sha256") || cell("id")).slice(0, 16)) ?? known.get(plain(cell("path")));
    const word = WORDS[cell("mark").trim().toLowerCase()];
    if (i !== undefined && word) changes.push([i, cell("note") ? { mark: word, note: plain(cell("note")) } : { mark: word }]);
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
