// Parts of the page that know nothing of models: cells with arrow keys, and a board to draw on.

export const $ = (id) => document.getElementById(id);
export const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

export function paint(canvas, image) {
  Object.assign(canvas, { width: image.width, height: image.height });
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
  return canvas;
}

/** An action that starts when calls have ceased for a while. */
export function debounce(action, milliseconds, timer) {
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}

/** An async action that runs again if it was called while it ran, and never twice at a time. */
export function latest(action) {
  let [isBusy, isAsked] = [false, false];
  return async () => {
    isAsked = true;
    if (isBusy) return;
    for (isBusy = true; isAsked; await wait(0)) {
      isAsked = false;
      await action();
    }
    isBusy = false;
  };
}

/** Fill a grid (of so many columns) or a listbox (0) with buttons that share one tab stop; arrow keys move in it. */
export function makeCells(container, count, columns, choose) {
  const role = columns ? "gridcell" : "option";
  const buttons = Array.from({ length: count }, (_, index) => element("button",
    { type: "button", role, tabIndex: index ? -1 : 0, ariaSelected: "false" }, element("canvas"), element("span")));
  const rows = Array.from({ length: columns && count / columns }, (_, row) =>
    element("div", { role: "row" }, ...buttons.slice(row * columns, (row + 1) * columns)));
  container.replaceChildren(...(columns ? rows : buttons));
  const perRow = () => columns || buttons.filter((button) => button.offsetTop === buttons[0].offsetTop).length;
  const indexOf = (event) => buttons.indexOf(event.target.closest("button"));
  container.addEventListener("click", (event) => indexOf(event) >= 0 && choose(indexOf(event), event));
  container.addEventListener("focusin", ({ target }) => {
    for (const button of buttons) button.tabIndex = button === target ? 0 : -1;
  });
  container.addEventListener("keydown", (event) => {
    const [at, width] = [indexOf(event), perRow()];
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -width, ArrowDown: width, Home: -at, End: count - 1 - at };
    if (!(event.key in moves)) return;
    event.preventDefault();
    buttons[at + moves[event.key]]?.focus();
  });
  return buttons;
}

/** Draw on a canvas by mouse, pen, finger or arrow keys, a step at a time; tool() tells {colour, width}. */
export function makeBoard(canvas, pen, step, tool, onChange) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  let last = null; // where the pointer is down
  let at = [canvas.width / 2, canvas.height / 2]; // the pen of the keyboard
  const stroke = (from, to) => {
    const { colour, width } = tool();
    Object.assign(context, { strokeStyle: colour, lineWidth: width, lineCap: "round" });
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
    onChange();
    return to;
  };
  const position = ({ clientX, clientY }) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    return [((clientX - left) / width) * canvas.width, ((clientY - top) / height) * canvas.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button || !event.isPrimary) return;
    canvas.setPointerCapture(event.pointerId);
    last = stroke(position(event), position(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (last && event.isPrimary) last = stroke(last, position(event));
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (last = null));
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step], " ": [0, 0] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const sides = [canvas.width, canvas.height];
    const to = moves[event.key].map((move, axis) => Math.min(sides[axis], Math.max(0, at[axis] + move)));
    if (event.key === " ") pen.classList.toggle("down");
    if (pen.classList.contains("down")) stroke(at, to);
    at = to;
    Object.assign(pen.style, { left: `${(100 * at[0]) / sides[0]}%`, top: `${(100 * at[1]) / sides[1]}%` });
  });
  return context;
}
