// What the page knows. Loops are numbers; columns hold what is known of each.
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const hooks = {}; // what the live page adds: hear(i), audio(i), near(i), marked(changes), unsaved(), start()

const loops = {
  count: data.id.length,
  group: (i) => data.group.names[data.group.of[i]],
  path: (i) => data.folder.names[data.folder.of[i]] + data.name[i],
  near: (i) => data.near[i] ?? [],
  sound: (i) => data.sound[i] ?? null,
  file: (i) => data.files.others[i]?.[0] ?? (data.files.of[i] < 0 ? null : data.files.start[data.files.of[i]] + loops.path(i)),
  // Where a linked file lies, seen from the page.
  link(i) {
    const start = data.files.link[data.files.of[i]];
    if (start === undefined) return data.files.others[i]?.[1] || null;
    return start + loops.path(i).split("/").map(encodeURIComponent).join("/");
  },
  // Inside of the page, beside it, at the server, or the file itself; "" where nothing can be heard.
  audio(i) {
    if (loops.sound(i)?.inside) return "inside";
    if (loops.sound(i)?.href) return "beside";
    if (hooks.hear) return loops.file(i) ? "served" : "";
    return loops.link(i) ? "link" : "";
  },
};

// The outline of a sound as an SVG path of vertical strokes in a box 32 high.
const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const LEVEL = new Map([...DIGITS].map((digit, level) => [digit, 31.5 - level / 2]));
function wavePath(wave) {
  let path = "";
  for (let k = 0; k < wave.length / 2; k += 1) {
    const low = LEVEL.get(wave[2 * k]), high = LEVEL.get(wave[2 * k + 1]);
    path += `M${k}.5 ${high}V${Math.max(low, high + 0.6)}`;
  }
  return path;
}

// Significant digits, and as many of them in every row; no exponent where avoidable.
function number(value, digits) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value), decimals = digits - 1 - Math.floor(Math.log10(size || 1));
  const text = size && (size < 1e-4 || size >= 1e5) ? value.toExponential(digits - 1).replace("+", "") : value.toFixed(Math.max(decimals, 0));
  return text.replaceAll("-", "\u2212");
}
const short = (value, digits) => String(Number(value.toPrecision(digits)));
const hertz = (hz) => (hz >= 1000 ? `${short(hz / 1000, 3)}\u00a0kHz` : `${short(hz, 3)}\u00a0Hz`);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Settings and marks live in this browser; a page opened from a file may be denied storage.
const memory = new Map();
const storage = {
  get(key) {
    try { return localStorage.getItem(key); } catch { return memory.get(key) ?? null; }
  },
  set(key, value) {
    try { localStorage.setItem(key, value); } catch { memory.set(key, value); }
  },
};
