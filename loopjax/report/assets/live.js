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
hooks.near = async (i) => {
  clearTimeout(dwelling);
  if (!data.near[i]) {
    const found = await ask(`near/${i}`);
    data.near[i] = found.near;
    data.why[i] ??= found.why;
    if (judged === i) showDock();
  }
  dwelling = setTimeout(async () => {
    if (judged !== i || !loops.file(i)) return;
    data.why[i] = (await ask(`why/${i}`)).why;
    list.refresh();
    if (judged === i) showDock();
  }, DWELL_MS);
};

hooks.marked = async (touched) => {
  try {
    await send("marks", { decisions: touched.map((i) => ({ i, mark: markOf(i), note: noteOf(i) })) });
    $("ask-status").textContent = "";
  } catch (error) {
    $("ask-status").textContent = `Marks could not be saved: ${error.message}`;
  }
};
hooks.start = async () => {
  for (const [key, value] of Object.entries(await ask("marks"))) marks.set(key, value);
  refresh();
};

// ---- files and texts ---------------------------------------------------------------------------
function answer(title, about, near, extra = []) {
  const found = near.map(({ i, cosine }) => make(
    "button", { type: "button", title: loops.path(i), onclick: () => showLoop(i) }, `${data.name[i]} ${cosine.toFixed(3)}`,
  ));
  $("answers").prepend(make(
    "li", {}, ...extra, make("span", { className: "name", textContent: title }), make("span", { className: "under", textContent: about }),
    make("span", { className: "near" }, ...found),
  ));
}
function showLoop(i) {
  const at = placeOf(i);
  if (at >= 0) list.reveal(at);
  toggle(i);
}

async function askFiles(files) {
  for (const file of files) {
    $("ask-status").textContent = `Asking about ${file.name} ...`;
    try {
      const found = await ask(`ask?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
      const button = make("button", { type: "button", className: "quiet", textContent: "Play", onclick: () => playBlob(file, found) });
      const verdict = `${found.is_anomaly ? "anomaly" : "normal"}, percentile ${found.percentile.toFixed(1)}, score ${short(found.score, 3)}`;
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
$("ask-text-form").addEventListener("submit", async (event) => {
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
