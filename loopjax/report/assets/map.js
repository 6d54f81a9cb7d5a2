// The map of the sound space: groups in colors, one dot at a time in the order of Tab and arrow keys
// from dot to dot, and a lasso around those to list.
const MAX_COLORS = 7; // groups beyond share a gray
const DRAG_PX = 5; // from here on a press is a lasso

// The groups with colors, largest first.
function mappedGroups() {
  const counts = new Map();
  for (const i of Object.keys(data.place)) counts.set(data.group.of[i], (counts.get(data.group.of[i]) ?? 0) + 1);
  const largest = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, MAX_COLORS).map(([group]) => group);
  return counts.size > 1 ? largest : [];
}

function makeMap({ activate, selected, chooseGroup }) {
  const plane = $("plane"), tip = $("tip"), lasso = $("lasso");
  const colored = mappedGroups();
  const dots = new Map();
  const svg = (tag) => document.createElementNS("http://www.w3.org/2000/svg", tag);
  const places = Object.entries(data.place).map(([i, place]) => [Number(i), ...place]);
  places.sort((a, b) => data.anomaly[a[0]] - data.anomaly[b[0]]);
  for (const [i, x, y] of places) {
    const dot = svg("circle");
    for (const [name, value] of Object.entries({ cx: x, cy: y, r: data.anomaly[i] ? 5 : 3.2, tabindex: -1, role: "button", "data-i": i })) dot.setAttribute(name, value);
    dot.setAttribute("aria-label", `${data.name[i]}, rank ${data.rank[i]}${data.anomaly[i] ? ", anomaly" : ""}`);
    const color = colored.length ? `g${colored.indexOf(data.group.of[i]) + 1}` : "plain";
    dot.setAttribute("class", `${color}${data.anomaly[i] ? " anomalous" : ""}`);
    dots.set(i, dot);
    plane.append(dot);
  }
  let entry = places[places.length - 1]?.[0]; // the dot that Tab comes to
  dots.get(entry)?.setAttribute("tabindex", 0);

  $("groups").replaceChildren(...colored.map((group, k) => make("li", {}, make(
    "button", { type: "button", className: "quiet", title: `List ${data.group.names[group] || "no folder"} alone`, onclick: () => chooseGroup(data.group.names[group]) },
    make("i", { className: `dot g${k + 1}` }), data.group.names[group] || "no folder",
  ))));

  function tell(dot) {
    const i = Number(dot.dataset.i), box = plane.getBoundingClientRect(), at = dot.getBoundingClientRect();
    tip.textContent = `${data.name[i]}, rank ${data.rank[i]}, ${loops.group(i)}`;
    tip.hidden = false;
    tip.style.left = `${Math.max(0, Math.min(at.left - box.left + 12, box.width - tip.offsetWidth))}px`;
    tip.style.top = `${at.bottom - box.top + 6}px`;
  }
  plane.addEventListener("pointerover", (event) => { if (event.target.matches("circle")) tell(event.target); });
  plane.addEventListener("pointerout", () => { tip.hidden = true; });
  plane.addEventListener("focusin", (event) => tell(event.target));
  plane.addEventListener("focusout", () => { tip.hidden = true; });

  function enter(i) {
    dots.get(entry)?.setAttribute("tabindex", -1);
    entry = i;
    dots.get(i).setAttribute("tabindex", 0);
  }
  const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  plane.addEventListener("keydown", (event) => {
    const i = Number(event.target.dataset.i), way = WAYS[event.key];
    if (event.key === "Enter" || event.key === " ") activate(i);
    else if (way) {
      const [x, y] = data.place[i];
      let best = null, least = Infinity;
      for (const [j, u, v] of places) {
        const along = (u - x) * way[0] + (v - y) * way[1], across = Math.abs((u - x) * way[1]) + Math.abs((v - y) * way[0]);
        if (j !== i && along > 0 && across <= along && along + across < least) [best, least] = [j, along + across];
      }
      if (best !== null) { enter(best); dots.get(best).focus(); }
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  plane.addEventListener("click", (event) => {
    const dot = event.target.closest("circle");
    if (!dot || drawn.length > 1) return;
    enter(Number(dot.dataset.i));
    activate(entry);
  });

  // ---- lasso: by mouse or pen at once, by finger once its button is pressed ----------------------
  const line = svg("polygon");
  line.setAttribute("class", "lasso");
  plane.append(line);
  let drawn = [], press = null;
  const inPlane = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(plane.getScreenCTM().inverse());
    return [point.x, point.y];
  };
  lasso.addEventListener("click", () => {
    const isOn = lasso.getAttribute("aria-pressed") !== "true";
    lasso.setAttribute("aria-pressed", String(isOn));
    plane.classList.toggle("drawing", isOn);
  });
  plane.addEventListener("pointerdown", (event) => {
    drawn = [];
    press = event.button === 0 && (event.pointerType !== "touch" || lasso.getAttribute("aria-pressed") === "true") ? event : null;
  });
  plane.addEventListener("pointermove", (event) => {
    if (!press || (!drawn.length && Math.hypot(event.clientX - press.clientX, event.clientY - press.clientY) < DRAG_PX)) return;
    if (!drawn.length) { plane.setPointerCapture(event.pointerId); drawn.push(inPlane(press)); }
    drawn.push(inPlane(event));
    line.setAttribute("points", drawn.map((point) => point.join(",")).join(" "));
  });
  const release = () => {
    press = null;
    line.removeAttribute("points");
    if (drawn.length > 2) selected(new Set(places.filter(([, x, y]) => isInside(x, y, drawn)).map(([i]) => i)));
  };
  plane.addEventListener("pointerup", release);
  plane.addEventListener("pointercancel", () => { drawn = []; release(); });

  return {
    // Emphasizes the loop that is heard and its neighbors.
    point(heard, near) {
      for (const dot of plane.querySelectorAll(".current, .near")) dot.classList.remove("current", "near");
      for (const j of near) dots.get(j)?.classList.add("near");
      dots.get(heard)?.classList.add("current");
    },
    dim(fits) {
      for (const [i, dot] of dots) dot.classList.toggle("dim", !fits(i));
    },
  };
}

// Whether a point lies in a polygon: a ray to the right crosses its edges an odd number of times.
function isInside(x, y, polygon) {
  let inside = false;
  for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a, a += 1) {
    const [ax, ay] = polygon[a], [bx, by] = polygon[b];
    if (ay > y !== by > y && x < ax + ((y - ay) / (by - ay)) * (bx - ax)) inside = !inside;
  }
  return inside;
}
