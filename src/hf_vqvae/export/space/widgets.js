// Parts of the page that know nothing of models: cells with arrow keys, and a board to draw on.
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
export const $ = (id) => document.getElementById(id);
export const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
export function element(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}
export function paint(canvas, image) {
  Object.assign(canvas, { width: image.width, height: image.height });
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
  return canvas;
}
export const pictureButton = (ariaLabel, image, onclick) =>
  element("button", { type: "button", ariaLabel, onclick }, paint(element("canvas"), image));
/** An action that starts when calls have ceased for a while. */
export function debounce(action, milliseconds, timer) {
  return () => (clearTimeout(timer), (timer = setTimeout(action, milliseconds)));
}
/** Fill a grid (of so many columns) or a listbox (0) with buttons that share one tab stop; arrow keys move in it. */
export function makeCells(container, count, columns, choose) {
  const role = columns ? "gridcell" : "option";
  const buttons = Array.from({ length: count }, (_, index) =>
    element("button", { type: "button", role, tabIndex: index ? -1 : 0 }, element("canvas"), element("span")));
  const rows = Array.from({ length: columns && count / columns }, (_, row) =>
    element("div", { role: "row" }, ...buttons.slice(row * columns, (row + 1) * columns)));
  container.replaceChildren(...(columns ? rows : buttons));
  const perRow = () => columns || buttons.filter((button) => button.offsetTop === buttons[0].offsetTop).length;
  container.addEventListener("focusin", ({ target }) => {
    for (const button of buttons) button.tabIndex = button === target ? 0 : -1;
  });
  container.addEventListener("keydown", (event) => {
    const [at, [x, y]] = [buttons.indexOf(event.target), ARROWS[event.key] ?? [0, 0]];
    if (x || y) event.preventDefault();
    buttons[at + x + y * perRow()]?.focus();
  });
  buttons.forEach((button, index) => (button.onclick = (event) => choose(index, event)));
  return buttons;
}
/** Draw on a canvas by mouse, pen, finger or arrow keys, a step at a time; tool() tells strokeStyle and lineWidth. */
export function makeBoard(canvas, pen, step, tool, onChange) {
  const [context, sides] = [canvas.getContext("2d", { willReadFrequently: true }), [canvas.width, canvas.height]];
  let last = null; // where the pointer is down
  let at = sides.map((side) => side / 2); // the pen of the keyboard
  const stroke = (from, to) => {
    Object.assign(context, { lineCap: "round", ...tool() });
    context.stroke(new Path2D(`M ${from} L ${to}`));
    onChange();
    return to;
  };
  const position = ({ offsetX, offsetY }) => [offsetX, offsetY].map((value) => (value * sides[0]) / canvas.clientWidth);
  canvas.onpointerdown = (event) => {
    if (event.button || !event.isPrimary) return;
    canvas.setPointerCapture(event.pointerId);
    last = stroke(position(event), position(event));
  };
  canvas.onpointermove = (event) => last && event.isPrimary && (last = stroke(last, position(event)));
  canvas.onpointerup = canvas.onpointercancel = () => (last = null);
  canvas.addEventListener("keydown", (event) => {
    const move = event.key === " " ? [0, 0] : ARROWS[event.key];
    if (!move) return;
    event.preventDefault();
    const to = at.map((value, axis) => Math.min(sides[axis], Math.max(0, value + step * move[axis])));
    if (event.key === " ") pen.classList.toggle("down");
    if (pen.classList.contains("down")) stroke(at, to);
    at = to;
    [pen.style.left, pen.style.top] = at.map((value, axis) => `${(100 * value) / sides[axis]}%`);
  });
  return context;
}
