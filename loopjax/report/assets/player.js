// One sound at a time, endlessly. Copies inside of the page or at a server go through Web Audio, which
// closes a loop without a gap; files go through a media element, because a page opened from a disk
// may not read other files itself.
const player = { heard: null, playing: false, context: null, source: null, element: null, start: 0, duration: 0, turn: 0, changed: () => {} };

function silence() {
  player.turn += 1;
  if (player.source) { player.source.stop(); player.source.disconnect(); player.source = null; }
  if (player.element) { player.element.pause(); player.element.removeAttribute("src"); player.element = null; }
  player.playing = false;
}

function position() {
  if (!player.playing) return 0;
  if (player.element) return player.element.currentTime;
  return player.duration ? (player.context.currentTime - player.start) % player.duration : 0;
}

async function bytesOf(i) {
  if (loops.audio(i) === "inside") return Uint8Array.from(atob($(`audio-${i}`).textContent), (c) => c.charCodeAt(0)).buffer;
  return hooks.audio(i);
}

async function startBuffer(bytes, turn, seconds, at_s) {
  player.context ??= new AudioContext();
  await player.context.resume();
  const buffer = await player.context.decodeAudioData(bytes);
  if (turn !== player.turn) return;
  const source = player.context.createBufferSource();
  source.buffer = buffer;
  source.loop = true;
  source.loopEnd = Math.min(buffer.duration, seconds || buffer.duration);
  source.connect(player.context.destination);
  const offset = at_s % source.loopEnd;
  source.start(0, offset);
  Object.assign(player, { source, start: player.context.currentTime - offset, duration: source.loopEnd });
}

async function startElement(address, turn, at_s) {
  const element = new Audio(address);
  element.loop = true;
  await element.play();
  if (turn !== player.turn) { element.pause(); return; }
  if (at_s) element.currentTime = at_s % element.duration;
  Object.assign(player, { element, duration: element.duration });
}

// Plays loop i from a time on. `failed` is told why if that is impossible.
async function playFrom(i, at_s, failed) {
  silence();
  player.heard = i;
  const turn = player.turn, kind = loops.audio(i);
  if (kind) {
    try {
      if (kind === "inside" || kind === "served") {
        const bytes = await bytesOf(i);
        if (turn !== player.turn) return;
        await startBuffer(bytes, turn, loops.sound(i)?.seconds, at_s);
      } else await startElement(kind === "beside" ? loops.sound(i).href : loops.link(i), turn, at_s);
      if (turn !== player.turn) return;
      player.playing = true;
    } catch (error) {
      if (turn === player.turn) failed(`${data.name[i]} cannot be played: ${error.message}`);
    }
  }
  player.changed();
}

function stop() {
  silence();
  player.changed();
}
