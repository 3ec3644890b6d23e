// A context menu for mouse and keyboard.

import { addStyles, make } from "../page/frontend.mjs";

await addStyles("popup.css");

let open = null;

/**
 * Args: x and y in the window; items, { text, run, checked, disabled, hint, detail } or null for a line, detail below
 * the text; back, the element that gets the focus when the menu closes.
 */
export function openMenu(x, y, items, back) {
  closeMenu();
  const menu = make("div", "mmdit-menu");
  menu.setAttribute("role", "menu");
  menu.append(...items.map((item) => (item ? entry(item) : line())));
  document.body.append(menu);
  const { width, height } = menu.getBoundingClientRect();
  menu.style.left = `${Math.max(4, Math.min(x, innerWidth - width - 4))}px`;
  menu.style.top = `${Math.max(4, Math.min(y, innerHeight - height - 4))}px`;

  const outside = (event) => menu.contains(event.target) || closeMenu();
  const close = () => {
    document.removeEventListener("pointerdown", outside, true);
    removeEventListener("wheel", outside, true);
    removeEventListener("blur", closeMenu);
    menu.remove();
    back.focus({ preventScroll: true });
  };
  document.addEventListener("pointerdown", outside, true);
  addEventListener("wheel", outside, true);
  addEventListener("blur", closeMenu);
  menu.addEventListener("keydown", onKey);
  menu.addEventListener("contextmenu", (event) => event.preventDefault());
  open = { close };
  enabled(menu)[0]?.focus();
}

export function closeMenu() {
  const menu = open;
  open = null;
  menu?.close();
}

function entry({ text, run, checked, disabled = false, hint = "", detail = "" }) {
  const item = make("button", "");
  item.append(make("span", "", text), ...(detail ? [make("small", "", detail)] : []));
  item.type = "button";
  item.title = hint;
  item.disabled = disabled;
  item.setAttribute("role", checked === undefined ? "menuitem" : "menuitemradio");
  if (checked !== undefined) item.setAttribute("aria-checked", String(checked));
  item.addEventListener("click", () => {
    closeMenu();
    run();
  });
  item.addEventListener("pointerenter", () => item.focus());
  return item;
}

function line() {
  const rule = document.createElement("hr");
  rule.setAttribute("role", "separator");
  return rule;
}

function enabled(menu) {
  return [...menu.querySelectorAll("button:not(:disabled)")];
}

function onKey(event) {
  const items = enabled(event.currentTarget);
  const here = items.indexOf(document.activeElement);
  const moves = { ArrowDown: here + 1, ArrowUp: here - 1 + items.length, Home: 0, End: items.length - 1 };
  event.stopPropagation();
  if (event.key === "Escape" || event.key === "Tab") closeMenu();
  else if (Object.hasOwn(moves, event.key)) items[moves[event.key] % items.length]?.focus();
  else return; // Enter and space press the button
  event.preventDefault();
}
