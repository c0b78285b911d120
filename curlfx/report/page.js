"use strict";
(() => {
  const tip = document.querySelector(".tip");

  // Tooltips of charts, on touch screens too. The title would show a second one, so it becomes a label.
  function told(target) {
    const part = target.closest("g");
    const title = part && part.querySelector(":scope > title");
    if (title) {
      part.dataset.tip = title.textContent;
      part.setAttribute("aria-label", title.textContent);
      title.remove();
    }
    return part && part.dataset.tip;
  }
  function point(event) {
    const text = event.target.closest(".plot svg") && told(event.target);
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(innerWidth - box.width - 4, event.clientX + 12)) + "px";
    tip.style.top = Math.max(4, event.clientY - box.height - 12) + "px";
  }
  document.addEventListener("pointermove", point);
  document.addEventListener("pointerdown", point);
  document.addEventListener("scroll", () => { tip.hidden = true; }, true);

  // Copying, also where the page is a local file and the clipboard is out of reach.
  async function copy(button) {
    const source = document.getElementById(button.dataset.copy);
    const label = button.textContent;
    let done = true;
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      getSelection().selectAllChildren(source);
      done = document.execCommand("copy");
    }
    button.textContent = done ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { button.textContent = label; }, 1600);
  }
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", () => copy(button));
  }

  // The coupling graph: a window (x, y) on the drawing, k pixels of the screen per unit.
  const box = document.querySelector(".viewer");
  if (!box) return;
  const svg = box.querySelector("svg"), said = document.querySelector(".told"), tools = document.querySelector(".tools");
  const width = Number(svg.getAttribute("width")), height = Number(svg.getAttribute("height"));
  const lanes = [...svg.querySelectorAll(".lane")], rows = [...svg.querySelectorAll(".row")];
  const fingers = new Map();
  let x = 0, y = 0, k = 1, moved = false;

  for (const part of [...rows, ...lanes]) {
    const title = part.querySelector(":scope > title");
    part.dataset.tip = title.textContent;
    part.setAttribute("aria-label", title.textContent);
    title.remove();
  }
  const whole = svg.querySelector(":scope > title");
  svg.setAttribute("aria-label", whole.textContent);
  svg.setAttribute("role", "img");
  whole.remove();
  svg.removeAttribute("width");
  svg.removeAttribute("height");
  svg.setAttribute("preserveAspectRatio", "xMinYMin meet");
  box.classList.add("live");
  tools.hidden = false;

  function show() {
    const w = box.clientWidth / k, h = box.clientHeight / k;
    x = Math.max(0, Math.min(x, width - w));
    y = Math.max(0, Math.min(y, height - h));
    svg.setAttribute("viewBox", `${x} ${y} ${w} ${h}`);
  }
  function fit() {
    k = Math.max(0.75, Math.min(1.3, box.clientWidth / width));
    x = y = 0;
    box.style.height = Math.min(0.75 * innerHeight, 740, height * k) + "px";
    show();
  }
  function zoom(factor, left, top) {
    const next = Math.max(0.1, Math.min(6, k * factor));
    x += left / k - left / next;
    y += top / k - top / next;
    k = next;
    show();
  }
  function at(event) {
    const edge = box.getBoundingClientRect();
    return [event.clientX - edge.left, event.clientY - edge.top];
  }
  function pick(part) {
    const own = part && part.closest(".row, .lane");
    const chosen = new Set();
    if (own && own.classList.contains("lane")) chosen.add(lanes.indexOf(own));
    if (own && own.dataset.lanes) own.dataset.lanes.split(" ").forEach((lane) => chosen.add(Number(lane)));
    box.classList.toggle("picked", chosen.size > 0);
    lanes.forEach((lane, number) => lane.classList.toggle("lit", chosen.has(number)));
    for (const row of rows) {
      const shared = row === own || (row.dataset.lanes && row.dataset.lanes.split(" ").some((lane) => chosen.has(Number(lane))));
      row.classList.toggle("lit", Boolean(shared));
    }
    const tied = rows.filter((row) => row !== own && row.classList.contains("lit")).map((row) => row.dataset.tip.split("\n")[0]);
    const more = tied.length > 12 ? `; and ${tied.length - 12} more` : "";
    said.textContent = own ? own.dataset.tip + (tied.length ? `\ntied to ${tied.slice(0, 12).join("; ")}${more}` : "") : "";
  }

  box.addEventListener("wheel", (event) => {
    if (!(event.ctrlKey || event.metaKey || box.classList.contains("active"))) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), ...at(event));
  }, { passive: false });
  box.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    moved = false;
    if (event.pointerType === "mouse") box.setPointerCapture(event.pointerId);
    box.classList.add("held");
  });
  box.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) {
      if (event.pointerType === "mouse") pick(event.target);
      return;
    }
    const now = [event.clientX, event.clientY];
    if (Math.hypot(now[0] - before[0], now[1] - before[1]) > 3) moved = true;
    if (fingers.size === 2) {
      const [id] = [...fingers.keys()].filter((one) => one !== event.pointerId), other = fingers.get(id);
      const edge = box.getBoundingClientRect();
      const spread = (one) => Math.hypot(one[0] - other[0], one[1] - other[1]);
      zoom(spread(now) / Math.max(1, spread(before)), (now[0] + other[0]) / 2 - edge.left, (now[1] + other[1]) / 2 - edge.top);
    }
    const share = k * fingers.size;
    x -= (now[0] - before[0]) / share;
    y -= (now[1] - before[1]) / share;
    fingers.set(event.pointerId, now);
    show();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    box.addEventListener(end, (event) => {
      fingers.delete(event.pointerId);
      if (!fingers.size) box.classList.remove("held");
      if (end === "pointerup" && !moved) {
        box.classList.add("active");
        pick(document.elementFromPoint(event.clientX, event.clientY));
      }
    });
  }
  box.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse" && !fingers.size) pick(null); });
  document.addEventListener("pointerdown", (event) => { if (!box.contains(event.target)) box.classList.remove("active"); });
  box.addEventListener("keydown", (event) => {
    const keys = { "+": [1.4], "=": [1.4], "-": [1 / 1.4], ArrowLeft: [0, -60, 0], ArrowRight: [0, 60, 0], ArrowUp: [0, 0, -60], ArrowDown: [0, 0, 60] };
    const action = keys[event.key];
    if (event.key === "0") fit();
    else if (event.key === "Escape") box.classList.remove("active");
    else if (!action) return;
    else if (action[0]) zoom(action[0], box.clientWidth / 2, box.clientHeight / 2);
    else { x += action[1] / k; y += action[2] / k; show(); }
    event.preventDefault();
  });
  for (const button of tools.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      const factor = Number(button.dataset.zoom);
      if (factor) zoom(factor, box.clientWidth / 2, box.clientHeight / 2);
      else fit();
    });
  }
  addEventListener("resize", show);
  fit();
})();
