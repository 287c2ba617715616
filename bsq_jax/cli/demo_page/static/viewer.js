// Two pictures on top of each other with a divider between them, and boxes over both.

const by = (id) => document.getElementById(id);

export class Viewer {
  // `clicked` is called with the pixel (x, y) of the picture.
  constructor(clicked) {
    this.stage = by("viewer");
    this.original = by("original");
    this.right = by("right");
    this.divider = by("divider");
    this.size = [1, 1];
    this.move(0.5);
    this.divider.addEventListener("pointerdown", (event) => this.drag(event));
    this.divider.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1 };
      if (event.key in steps) {
        event.preventDefault();
        this.move(this.share + steps[event.key]);
      }
    });
    this.stage.addEventListener("click", (event) => {
      if (this.divider.contains(event.target)) return;
      const area = this.stage.getBoundingClientRect();
      const at = (place, from, length, count) =>
        Math.min(Math.max(Math.floor(((place - from) / length) * count), 0), count - 1);
      clicked(
        at(event.clientX, area.left, area.width, this.size[0]),
        at(event.clientY, area.top, area.height, this.size[1]),
      );
    });
  }

  resize(width, height) {
    this.size = [width, height];
    // Small pictures are enlarged, but not to a blur; tall ones stay on the screen.
    const most = Math.min(Math.max(width * 3, 320), (window.innerHeight * 0.8 * width) / height);
    this.stage.style.maxWidth = `${Math.round(most)}px`;
    this.stage.style.aspectRatio = `${width} / ${height}`;
  }

  show(side, url, label, blocks = false) {
    this[side].src = url;
    this[side].classList.toggle("blocks", blocks);
    by(side === "right" ? "right-tag" : "left-tag").textContent = label;
  }

  move(share) {
    this.share = Math.min(Math.max(share, 0), 1);
    const percent = `${100 * this.share}%`;
    this.right.style.clipPath = `inset(0 0 0 ${percent})`;
    this.divider.style.left = percent;
    this.divider.setAttribute("aria-valuenow", Math.round(100 * this.share));
  }

  drag(event) {
    event.preventDefault();
    this.divider.focus();
    this.divider.setPointerCapture(event.pointerId);
    const follow = (moved) => {
      const area = this.stage.getBoundingClientRect();
      this.move((moved.clientX - area.left) / area.width);
    };
    this.divider.onpointermove = follow;
    this.divider.onpointerup = this.divider.onpointercancel = () => {
      this.divider.onpointermove = null;
    };
  }

  // A box of pixels [top, left, bottom, right], or none.
  box(id, box) {
    const [width, height] = this.size;
    const element = by(id);
    element.hidden = !box;
    if (!box) return;
    const [top, left, bottom, right] = box;
    element.style.left = `${(100 * left) / width}%`;
    element.style.top = `${(100 * top) / height}%`;
    element.style.width = `${(100 * (right - left)) / width}%`;
    element.style.height = `${(100 * (bottom - top)) / height}%`;
  }
}
