// The live page asks its server: sounds of the rows in view, neighbors and reasons of the loop under
// judgement, scores of files that are dropped in. Marks go to the server's file.
const MOST_ASKED = 3; // sounds asked for at once
const DWELL_MS = 700; // a loop is explained once somebody stays with it

async function ask(path, options = {}) {
  const response = await fetch(path, options);
  if (response.headers.get("content-type")?.startsWith("application/json")) {
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    return answer;
  }
  if (!response.ok) throw new Error(await response.text());
  return response.arrayBuffer();
}
const send = (path, value) => ask(path, { method: "POST", body: JSON.stringify(value) });

// The rows that came into view last are the ones somebody waits for.
const wanted = new Set();
const failed = new Set();
let asked = 0;
hooks.hear = (i) => {
  if (!loops.file(i) || failed.has(i)) return;
  wanted.delete(i);
  wanted.add(i);
  hearNext();
};
async function hearNext() {
  if (asked >= MOST_ASKED || !wanted.size) return;
  const i = [...wanted].pop();
  wanted.delete(i);
  asked += 1;
  try {
    data.sound[i] = await ask(`sound/${i}`);
    list.refresh();
  } catch {
    failed.add(i);
  }
  asked -= 1;
  hearNext();
}
hooks.audio = (i) => ask(`audio/${i}`);

let dwelling = null;
hooks.near = (i) => {
  clearTimeout(dwelling);
  const told = (found) => {
    Object.assign(data.why, { [i]: found.why });
    list.refresh();
    if (judged === i) showDock();
  };
  const failed = (error) => { if (judged === i) fail(`${data.name[i]} cannot be explained: ${error.message}`); };
  if (!data.near[i]) ask(`near/${i}`).then((found) => { data.near[i] = found.near; told({ why: data.why[i] ?? found.why }); }).catch(failed);
  dwelling = setTimeout(() => { if (judged === i && loops.file(i)) ask(`why/${i}`).then(told).catch(failed); }, DWELL_MS);
};

// Marks go to the server in the order of decisions; what it did not take is sent again.
const MOST_SENT = 5000, AGAIN_MS = 3000;
const unsaved = new Map(); // loop -> what changed
let saving = false;
hooks.marked = (changes) => {
  for (const [i, change] of changes) unsaved.set(i, { ...unsaved.get(i), ...change });
  save();
};
async function save() {
  if (saving || !unsaved.size) return;
  saving = true;
  const sent = [...unsaved].slice(0, MOST_SENT);
  for (const [i] of sent) unsaved.delete(i);
  let wait = 0;
  try {
    await send("marks", { decisions: sent.map(([i, change]) => ({ i, ...change })) });
    $("save-status").textContent = "";
  } catch (error) {
    for (const [i, change] of sent) unsaved.set(i, { ...change, ...unsaved.get(i) });
    $("save-status").textContent = `${unsaved.size} decisions are not saved yet: ${error.message}`;
    wait = AGAIN_MS;
  }
  saving = false;
  setTimeout(save, wait);
}
hooks.unsaved = () => saving || unsaved.size > 0;
window.addEventListener("beforeunload", (event) => { if (hooks.unsaved()) event.preventDefault(); });

// Other pages, and people, write the same file.
hooks.start = async () => {
  try {
    const found = Object.entries(await ask("marks"));
    if (hooks.unsaved()) return;
    marks.clear();
    for (const [i, value] of found) marks.set(keyOf(i), value);
    refresh();
    $("save-status").textContent = "";
  } catch (error) {
    $("save-status").textContent = `Marks could not be read: ${error.message}`;
  }
};
window.addEventListener("focus", () => hooks.start());

// ---- files and texts ---------------------------------------------------------------------------
function answer(title, about, near, extra = []) {
  const found = near.map(({ i, cosine }) => make(
    "button", { type: "button", title: loops.path(i), onclick: () => choose(i) }, `${data.name[i]} ${cosine.toFixed(3)}`,
  ));
  $("answers").prepend(make(
    "li", {}, ...extra, make("span", { className: "name", textContent: title }), make("span", { className: "under", textContent: about }),
    make("span", { className: "near" }, ...found),
  ));
}

async function askFiles(files) {
  for (const file of files) {
    $("ask-status").textContent = `Asking about ${file.name} ...`;
    try {
      const found = await ask(`ask?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
      const button = make("button", { type: "button", className: "quiet", textContent: "Play", onclick: () => playBlob(file, found) });
      const verdict = `${found.is_anomaly ? "anomaly" : "normal"}, percentile ${found.percentile.toFixed(1)}, score ${number(found.score, 3)}`;
      answer(file.name, [verdict, ...found.flags, found.why].filter(Boolean).join(" · "), found.near, [button]);
      $("ask-status").textContent = "";
    } catch (error) {
      $("ask-status").textContent = `${file.name}: ${error.message}`;
    }
  }
}
async function playBlob(file, found) {
  silence();
  const turn = player.turn;
  await startBuffer(await file.arrayBuffer(), turn, found.sound.seconds, 0).catch((error) => { $("ask-status").textContent = `${file.name} cannot be played: ${error.message}`; });
}

$("ask-files").addEventListener("change", () => askFiles([...$("ask-files").files]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") askFiles([...event.dataTransfer.files]);
  });
}
$("ask-text-form")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = $("ask-text").value.trim();
  if (!text) return;
  $("ask-status").textContent = `Searching for ${text} ...`;
  try {
    answer(text, "the loops that fit this description best", await send("text", { text }));
    $("ask-status").textContent = "";
  } catch (error) {
    $("ask-status").textContent = error.message;
  }
});
