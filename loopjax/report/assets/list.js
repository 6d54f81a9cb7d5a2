// A table of any length: only the rows in view exist, and serve again for others as it scrolls.
const SPARE = 6; // rows kept beyond either edge

class LongList {
  // `viewport` scrolls, `body` inside of it holds the rows, `fill(row, item, place)` writes one.
  constructor(viewport, body, template, fill) {
    Object.assign(this, { viewport, body, template, fill, items: [], rows: [], waiting: false });
    this.height = this.rowHeight();
    const later = () => {
      if (this.waiting) return;
      this.waiting = true;
      requestAnimationFrame(() => { this.waiting = false; this.draw(); });
    };
    viewport.addEventListener("scroll", later, { passive: true });
    new ResizeObserver(() => this.measure()).observe(viewport);
  }

  rowHeight() {
    return parseFloat(getComputedStyle(this.viewport).getPropertyValue("--row"));
  }

  measure() {
    const height = this.rowHeight();
    if (height !== this.height) {
      const first = Math.round(this.viewport.scrollTop / this.height);
      this.height = height;
      this.show(this.items);
      this.viewport.scrollTop = first * height;
    }
    this.draw();
  }

  show(items) {
    this.items = items;
    this.body.style.height = `${items.length * this.height}px`;
    this.body.parentElement.setAttribute("aria-rowcount", items.length + 1);
    this.refresh();
  }

  refresh() {
    for (const row of this.rows) row.place = -1;
    this.draw();
  }

  draw() {
    const { viewport, items, height } = this;
    const inView = Math.ceil(viewport.clientHeight / height) + 2 * SPARE;
    while (this.rows.length < Math.min(inView, items.length)) {
      const row = this.template.content.firstElementChild.cloneNode(true);
      row.place = -1;
      this.rows.push(row);
      this.body.append(row);
    }
    const first = Math.max(0, Math.min(Math.floor(viewport.scrollTop / height) - SPARE, items.length - this.rows.length));
    for (let k = 0; k < this.rows.length; k += 1) {
      const place = first + k, row = this.rows[place % this.rows.length];
      if (row.place === place) continue;
      // Who was about to press a button of this row must not press another loop's.
      if (row.item !== items[place] && row.contains(document.activeElement)) viewport.focus({ preventScroll: true });
      row.hidden = place >= items.length;
      row.place = place;
      row.item = items[place];
      if (row.hidden) continue;
      row.style.top = `${place * height}px`;
      row.setAttribute("aria-rowindex", place + 2);
      this.fill(row, items[place], place);
    }
  }

  // Scrolls just as far as needed to show the row at a place.
  reveal(place) {
    const top = place * this.height, { viewport } = this;
    const room = viewport.clientHeight - this.body.offsetTop;
    if (top < viewport.scrollTop) viewport.scrollTop = top;
    else if (top + this.height > viewport.scrollTop + room) viewport.scrollTop = top + this.height - room;
    this.draw();
  }
}
